"""Services that look back: what became of events, and what rules would have done."""
