"""`oncue deploy`: which files, with which values, under which labels."""
