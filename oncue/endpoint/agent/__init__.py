"""The agent: a state machine, its journal, its queue, its socket."""
