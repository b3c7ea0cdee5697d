"""Services for many tasks at once: lists, counts, retries by hand."""
