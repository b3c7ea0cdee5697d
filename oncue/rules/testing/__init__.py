"""`tests:` of rule files, run offline."""
