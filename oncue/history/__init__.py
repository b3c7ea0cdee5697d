"""History for analysis: events and tasks of a server, in files."""
