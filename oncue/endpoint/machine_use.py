"""Load and memory of a machine and of the agent, measured every few seconds."""

from __future__ import annotations

import os

import msgspec
import psutil

from oncue.endpoint.pool.limits import cores


class MachineUse(msgspec.Struct, frozen=True):
    """Use of one machine; with blocks, of their nodes together. Sizes in bytes."""

    load: float = 0.0  # of the last minute
    own_bytes: int = 0  # resident memory of the agent
    cores: int = 0  # that it may use
    memory_bytes: int = 0
    used_bytes: int = 0


class MachineMeter:
    """Measures the machine and this process."""

    def __init__(self) -> None:
        self._me = psutil.Process()

    def measure(self) -> MachineUse:
        memory = psutil.virtual_memory()
        own = self._me.memory_info().rss
        return MachineUse(os.getloadavg()[0], own, cores(), memory.total, memory.total - memory.available)
