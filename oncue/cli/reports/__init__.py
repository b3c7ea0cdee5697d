"""Reports: sums over the items of a report, and their forms."""
