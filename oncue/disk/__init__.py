"""Files on this machine: modes, durable writes, space, errors of SQLite."""
