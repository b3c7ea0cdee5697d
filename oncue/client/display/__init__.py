"""Display of clients and tasks: tables in notebooks, progress bars, logs."""
