"""The endpoint: agent, pool, workers, providers of blocks, container runtimes."""
