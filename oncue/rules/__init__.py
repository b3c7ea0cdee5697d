"""Rules: from events to tasks."""
