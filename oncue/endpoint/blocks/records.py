"""Records of blocks in the agent's journal, and effects of the table of blocks.

    ASKED ──job id known──► PENDING ──job runs, or a node joins──► RUNNING ──► DRAINING ──► ENDED

The record ASKED is in the journal before the scheduler is called. The job's name is the block's
mark, so a job whose submission was not answered is found by it, by any later agent of this folder.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from oncue.endpoint.providers.jobs import JobEnding
from oncue.endpoint.providers.last_words import last_words
from oncue.protocol.codec import build_decoders
from oncue.protocol.records import Stored
from oncue.protocol.reports import BlockReport

STDERR_CHARS = 2_000  # of a job's own last words, kept with its block


class BlockPhase(Enum):
    """Phase of a block's life. The values are stored, and shown to users."""

    ASKED = "asked"  # the scheduler is being called, or its answer was lost
    PENDING = "pending"
    RUNNING = "running"
    DRAINING = "draining"  # gets no new tasks
    ENDED = "ended"  # final


class BlockRecord(Stored, frozen=True):
    """One block: a batch job, with a pool on each of its nodes.

    Times are unix µs by the agent's clock; 0: not yet.
    """

    id: str
    phase: BlockPhase
    nodes: int
    workers: int  # a node
    walltime_s: float
    key: str = ""  # public CURVE key of its nodes, Z85
    asked_us: int = 0
    job: str = ""
    pending_us: int = 0
    running_us: int = 0
    registered_us: int = 0  # its first node with a worker joined
    ended_us: int = 0
    cancelled: bool = False  # by this endpoint
    counted: bool = False  # its end is in BlockHistory
    reason: str = ""
    ending: str = ""
    exit: int | None = None
    stderr: str = ""


class BlockHistory(Stored, frozen=True):
    """Submissions, early ends and node-hours, which limit further blocks."""

    #: Hour (unix) -> node-seconds of the blocks that ended in it.
    spent: dict[int, float] = msgspec.field(default_factory=dict)
    submits: tuple[int, ...] = ()  # times of the newest submissions
    deaths: tuple[int, ...] = ()  # submission times of blocks that ended before a worker registered
    deaths_in_row: int = 0
    died_us: int = 0  # the newest death
    died: str = ""  # its words
    refusals: int = 0  # failed submissions in a row
    refused_us: int = 0
    refused: str = ""
    final: bool = False  # the scheduler refused the job itself; it was not merely away
    submits_failed: int = 0  # in the endpoint's life


class BlocksUsage(msgspec.Struct, frozen=True):
    """Facts about blocks that the server is told. See reports.Usage."""

    scheduler: str
    workers: int
    waiting_for: str
    trouble: str
    node_hours: float
    blocks: tuple[BlockReport, ...]
    cores: int
    machine_bytes: int
    used_bytes: int
    nodes: int
    node_hours_limit: float
    node_hours_period_s: int
    breaker: str
    submits_failed: int


def mark_of(endpoint: str, block: str) -> str:
    """Return the name of a block's job, by which any agent of the endpoint finds it."""
    return f"oncue-{endpoint.rpartition('_')[2].replace('-', '')[:8]}-{block}"


def ended_well(block: BlockRecord) -> bool:
    """Return True if the block had workers and its job succeeded."""
    return bool(block.registered_us) and block.exit == 0


def end_words(block: BlockRecord) -> str:
    """Return why a block has ended, in words."""
    parts = [f"job {block.job}" if block.job else "no job"]
    if block.ending == JobEnding.CANCELLED.value and block.cancelled and not block.running_us:
        return f"{parts[0]}, cancelled before it ran"
    if block.ending:
        parts.append(block.ending)
    if block.exit is not None:
        parts.append(f"exit {block.exit}")
    if block.reason:
        parts.append(block.reason)
    last = last_words(block.stderr)
    if last and not ended_well(block):
        parts.append(f"its stderr ends with: {last[:300]}")
    return ", ".join(parts)


# ---------------------------------------------------------------- effects


class SubmitBlock(msgspec.Struct, frozen=True):
    """Submit the job of a block. Its record is in the journal."""

    block: BlockRecord
    mark: str
    secret: str  # CURVE key of its nodes; nothing stores it here


class FindBlocks(msgspec.Struct, frozen=True):
    """Look for the jobs with these marks."""

    marks: tuple[str, ...]


class PollJobs(msgspec.Struct, frozen=True):
    """Ask the scheduler for the states of these jobs."""

    jobs: tuple[str, ...]


class CancelJobs(msgspec.Struct, frozen=True):
    """Ask the scheduler to end these jobs."""

    jobs: tuple[str, ...]


class DrainBlock(msgspec.Struct, frozen=True):
    """Give the block's nodes no new tasks; take back what has not begun.

    `hand_back`: its walltime ends. Running tasks are told, ended and requeued, uncharged.
    """

    block: str
    hand_back: bool = False


class ReleaseBlock(msgspec.Struct, frozen=True):
    """Let the block's nodes exit. Nothing runs there any more."""

    block: str


class EndBlock(msgspec.Struct, frozen=True):
    """Count the block's nodes as gone: its job has ended."""

    block: str
    why: str


BlockEffect = SubmitBlock | FindBlocks | PollJobs | CancelJobs | DrainBlock | ReleaseBlock | EndBlock

build_decoders(globals())
