"""The embedded log, in SQLite."""
