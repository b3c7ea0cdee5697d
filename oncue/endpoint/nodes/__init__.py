"""Pools on the nodes of blocks: the agent's side, and the process of a node."""
