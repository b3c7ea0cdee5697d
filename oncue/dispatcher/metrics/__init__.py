"""Metrics of GET /metrics."""
