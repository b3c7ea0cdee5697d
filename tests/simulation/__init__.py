"""Bridge and agents on virtual time, with one seeded source of chance: `python -m tests.simulation --seeds 0:2000`.

one server: client ──► Server (lanes of oncue.dispatcher, an in-memory log, the lifecycle fold)
             ▲│  Network: delays, drops, doubles, cut links
             │▼
           Site (the agent of oncue.endpoint, its journal in a MemoryFile, a SimPool)
"""
