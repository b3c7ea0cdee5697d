"""Rule files: text -> RuleSet, with line and column of each fault."""
