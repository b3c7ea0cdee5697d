"""Bridge and agents on virtual time, with one seeded source of chance: `python -m tests.simulation --seeds 0:2000`.

client ──► Server (lanes of oncue.dispatcher, an in-memory log, the lifecycle fold)
             ▲│  Network: delays, drops, doubles, cut links
             │▼
           Site (the agent of oncue.endpoint, its journal in a MemoryFile, a SimPool)

`--many`: several servers (member.py) with views that lag behind a log that they share (topics.py), which a group divides the
endpoints among (group.py); they are killed, stopped, continued and added.
"""
