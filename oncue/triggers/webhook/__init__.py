"""`kind: webhook`: requests that become events."""
