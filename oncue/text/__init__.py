"""Text of outsiders on its way to terminals and log files."""
