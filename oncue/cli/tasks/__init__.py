"""Parts of the commands for tasks: filters, short ids, many tasks, live lines."""
