"""Providers of blocks: where the workers of an endpoint come from."""
