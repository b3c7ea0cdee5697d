"""Commands that look back: reports and replays."""
