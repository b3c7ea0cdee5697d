"""Loop of a node: an agent whose server is the endpoint's agent.

    NodePool (node_pool.py) ◄══ CURVE, the node dials ══► Agent ──► Pool ──► workers

Nothing survives it: its journal is in memory. SIGTERM, as a scheduler sends it before it ends a
job: running tasks get `grace_s`, then they are ended and handed back, and run elsewhere.
"""

from __future__ import annotations

import logging
import os
import platform
import random
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Unpack

import msgspec

import oncue
from oncue import curve
from oncue.clocks.process import now_us, process_clock
from oncue.endpoint.agent.agent import Agent, AgentIdentity
from oncue.endpoint.agent.blob_cache import DiskCache
from oncue.endpoint.agent.blob_sweep import BlobSweep
from oncue.endpoint.agent.effects import Connect
from oncue.endpoint.agent.journal import Journal
from oncue.endpoint.agent.session import SessionPhase
from oncue.endpoint.agent.socket import AgentSocket, ConnectionProblem
from oncue.endpoint.loop import AgentLoop
from oncue.endpoint.machine_use import MachineMeter
from oncue.endpoint.nodes.addresses import AddressCycle
from oncue.endpoint.pool.launch import LaunchOptions
from oncue.endpoint.pool.orphans import Orphans
from oncue.endpoint.pool.pool import Pool
from oncue.errors import Refused
from oncue.protocol.records import LOST

log = logging.getLogger("oncue.agent")
USAGE_US, CHECK_US = 5_000_000, 1_000_000
KEY_REFUSED_US = 5_000_000  # in which the agent that refuses the key may be replaced
FLUSH_S = 10.0  # for the last results
STARTING = "no worker has started yet"


class NodeOptions(msgspec.Struct, frozen=True):
    """Options of a node's process."""

    block: str
    workers: int
    folder: Path  # of this process alone
    grace_s: float = 1.0
    away_s: float = 1_800.0  # without an agent, and without a task that runs, until it exits
    job_age_s: float = 0.0


def node_name(environ: Mapping[str, str]) -> str:
    """Return the name of this node as its scheduler's launcher knows it."""
    return environ.get("SLURMD_NODENAME") or socket.gethostname()


class VoidFile:
    """A JournalFile that keeps nothing: the agent's journal has what must survive."""

    def read(self) -> bytes:
        return b""

    def append(self, data: bytes | bytearray) -> int:
        return len(data)

    def truncate(self, size: int) -> None: ...

    def replace(self, data: bytes) -> None: ...


class NodeProcess:
    """Agent, pool and socket of a node, and their loop.

    `adopts`: this process adopts orphans, and has no children but workers. Raises OSError.
    """

    def __init__(
        self,
        options: NodeOptions,
        keys: curve.Keys,
        addresses: AddressCycle,
        *,
        adopts: bool = False,
        **launch: Unpack[LaunchOptions],
    ) -> None:
        self._options, self._addresses = options, addresses
        folder = options.folder
        identity = AgentIdentity(
            options.block,
            oncue.__version__,
            platform.python_version(),
            node_name(os.environ),
            os.getpid(),
            os.urandom(8),
            began_us=now_us() - int(options.job_age_s * 1e6),
        )
        cache = DiskCache(folder / "functions", folder / "blobs")
        journal = Journal(VoidFile(), identity.boot)
        self.agent = Agent(identity, journal, cache, random.Random(), options.workers, now_us())
        self.agent.no_workers = STARTING
        orphans = Orphans() if adopts else None
        self.pool = Pool(options.workers, folder, orphans=orphans, **launch)
        self._socket = AgentSocket(keys)
        self.loop = AgentLoop(self.agent, self.pool, self._socket, self._dial)
        self._machine = MachineMeter()
        self._sweep = BlobSweep(self.agent, folder / "blobs")
        self._usage_us = self._checked_us = self._refused_us = 0
        self._seen_us = now_us()  # when it was connected last
        self._trouble = ""

    def _dial(self, _to: Connect) -> None:
        self._socket.connect(*self._addresses.pick())

    def run(self) -> None:
        """Run until a signal, or until the agent needs the node no more.

        Raises Refused if the agent does not know this block, or is away for too long.
        """
        self.loop.stop_on_signals()
        while not self.loop.stop_why and not self.agent.refused:
            self.loop.turn(self._checked_us + CHECK_US, self._check)
        if self.agent.refused:
            self.pool.close(0.0)
            if self.agent.refused.details.get("reason") != "dismissed":
                raise self.agent.refused
            log.info("the agent needs this node no more")
            return
        self._finish()

    def _check(self, at: int) -> None:
        self._check_connection(at)
        # Later, a pool that replaces its only worker is not in trouble.
        if self.agent.no_workers != STARTING or self.pool.ready or self.pool.trouble:
            self.agent.no_workers = self.pool.trouble
        if at - self._checked_us < CHECK_US:
            return
        self._checked_us = at
        process_clock.observe()
        self._sweep.check(at)
        if self.pool.trouble != self._trouble:
            self._trouble = self.pool.trouble
            log.error("%s", self._trouble or "workers start again")
        if self.agent.phase is SessionPhase.CONNECTED and at - self._usage_us >= USAGE_US:
            self._usage_us = at
            self.agent.report_usage(self.pool, self._machine.measure())

    def _check_connection(self, at: int) -> None:
        if self.agent.phase is SessionPhase.CONNECTED:
            self._seen_us, self._refused_us = at, 0
        elif at - self._seen_us > self._options.away_s * 1e6 and not self.agent.running:
            self.agent.refused = Refused(
                f"no agent was there for {self._options.away_s:g} s",
                remedy="start the endpoint's agent again: it asks for a new block",
            )
        problems = self._socket.problems()
        if ConnectionProblem.KEY_REFUSED in problems:
            self._refused_us = self._refused_us or at
            over = problems[ConnectionProblem.KEY_REFUSED] == curve.REVOKED
            why = "the agent has given this block up" if over else "the agent does not know this block"
            if over or at - self._refused_us > KEY_REFUSED_US:
                self.agent.refused = Refused(why, remedy="the agent asks for a new block when it needs one")
            self.agent.disconnect(why, at)
        elif problems:
            self.agent.disconnect(next(iter(problems)).value, at)

    def _finish(self) -> None:
        """Let running tasks end, hand back what has not ended, and send the last results."""
        self.agent.stop(self.loop.stop_why)
        self.pool.close(self._options.grace_s)
        events = self.pool.drain()
        # What was ended here runs elsewhere. The agent requeues what a node holds when it says Bye.
        events.ended = [(f, n, [e for e in ends if e.status != LOST]) for f, n, ends in events.ended]
        self.loop.forward(events)
        self.loop.flush(FLUSH_S)
        log.info("stopped")

    def close(self) -> None:
        self._socket.close()
        self.loop.close()
