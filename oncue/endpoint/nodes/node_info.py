"""Facts of nodes that the agent tells: who came and left, and their state."""

from __future__ import annotations

import msgspec

from oncue.endpoint.machine_use import MachineUse


class NodeChange(msgspec.Struct, frozen=True):
    """A node that has joined with a worker, or has left."""

    block: str
    node: str
    joined: bool
    why: str = ""  # it left


class NodeInfo(msgspec.Struct, frozen=True):
    """State of a node, for people."""

    block: str
    host: str
    pid: int
    phase: str
    workers: int
    ready: int
    busy: int
    held: int  # tasks
    taken: int  # workers' room that those take
    in_gang: bool  # a task over several nodes has it
    trouble: str
    joined_us: int
    use: MachineUse
    began_us: int  # its job; 0: not known
