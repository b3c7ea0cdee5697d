"""Options of an endpoint: its `endpoint.yaml`."""
