"""Simulation of bridge and agents on virtual time, with one seeded random source.

`python -m tests.simulation --seeds 0:2000`


client ──► Server (channels of oncue.dispatcher, an in-memory log, the lifecycle fold)
             ▲│  Network: delays, drops, duplicates, cut links
             │▼
           Site (the agent of oncue.endpoint, its journal in a MemoryFile, a SimPool)

`--many`: several servers (member.py) share a log (topics.py). Their views lag behind it. A group (group.py) assigns the
endpoints to them. Servers are killed, stopped, continued and added.
"""
