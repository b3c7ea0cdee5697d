"""Records of `oncue.reports`: running tasks, workers and blocks, as agents tell.

They may be lost. See records.py for the rules of all records.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from oncue.protocol.codec import build_decoders
from oncue.protocol.records import AttemptNumber, Micros, Natural, Short, Stored, TaskId


class Started(Stored, tag="started", frozen=True):
    """Tasks that have been running for more than a second."""

    v: int
    endpoint: Short
    # (task id, attempt, started_us)
    tasks: Annotated[tuple[tuple[TaskId, AttemptNumber, Micros], ...], msgspec.Meta(max_length=10_000)]
    worker: Short = ""


class Output(Stored, tag="output", frozen=True):
    """Lines that a running task has printed."""

    v: int
    endpoint: Short
    task: TaskId
    attempt: AttemptNumber
    offset_bytes: Natural
    text: Annotated[bytes, msgspec.Meta(max_length=1 << 20)]


class BlockReport(Stored, frozen=True):
    """One block of an endpoint: a batch job that holds workers."""

    id: Short
    job: Short  # the scheduler's id; "": not known
    state: Short  # asked, pending, running, draining, ended
    nodes: Natural
    workers: Natural
    busy: Natural = 0
    reason: Short = ""  # why it waits or has ended
    since_us: Micros = 0  # in this state
    ends_us: Micros = 0  # when its walltime ends; 0: it does not run
    waits: Short = ""  # the scheduler's reason alone, such as Resources; "": it does not wait


MOST_BLOCKS = 50  # in one report
NodeHours = Annotated[float, msgspec.Meta(ge=0, le=1e12)]


class Usage(Stored, tag="usage", frozen=True):
    """Load of an endpoint and its machine."""

    v: int
    endpoint: Short
    at_us: Micros
    workers: Natural
    busy: Natural
    queued: Natural
    spooled: Natural
    host: Short = ""
    load: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.0  # not NaN: JSON has none
    memory_bytes: Natural = 0
    agent_version: Short = ""
    python: Short = ""
    scheduler: Short = ""  # kind of the provider of blocks; "": workers of the agent's own machine
    waiting_for: Short = ""  # why tasks at the agent wait
    trouble: Short = ""  # why no worker can be had
    node_hours: NodeHours = 0.0  # within the limit's period
    blocks: Annotated[tuple[BlockReport, ...], msgspec.Meta(max_length=MOST_BLOCKS)] = ()
    idle: Natural = 0  # workers that have started and run nothing
    starting: Natural = 0  # workers that have not started yet
    cores: Natural = 0  # of the machine; with blocks, of their nodes
    machine_bytes: Natural = 0  # its memory
    used_bytes: Natural = 0  # of it, by all processes
    nodes: Natural = 0  # of blocks, that are connected
    node_hours_limit: NodeHours = 0.0  # 0: none
    node_hours_period_s: Natural = 0
    breaker: Short = ""  # why no more blocks are asked for after failures; "": they are
    submits_failed: Natural = 0  # in the endpoint's life


Report = Started | Output | Usage

build_decoders(globals())
