"""Several servers on one log: ownership of partitions, requests to peers."""
