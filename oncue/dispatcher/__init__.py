"""The server: services, the bridge to agents, the HTTP API."""
