"""History for analysis: events and tasks of a server, in a SQLite file or Parquet files."""
