"""Interface of a provider: submits, polls and cancels blocks of workers.

A block is one batch job or one local process group. It holds a pool of workers.

    submit(request) ──► PENDING ──a worker starts──► RUNNING ──job over, or cancel──► ENDED

The contract of every provider:

- *One block for one id.* The agent chooses `BlockRequest.id` before it calls `submit`. A provider
  of batch jobs puts the id into the job's name, so that a job whose submission timed out is found
  again instead of submitted twice.
- *Status in bulk.* `status` takes all blocks at once, so that a scheduler is asked once (one
  `squeue`), never once a block. A block that the answer leaves out is unknown: its last state
  holds.
- *ENDED is final.* It is reported only when it is confirmed. A job that the scheduler does not
  list yet is not ENDED, nor is any job while the scheduler does not answer. An ended block never
  runs again.
- *`reason` is for the user*: why a block waits, cannot start workers, or has ended.
- *Nothing blocks the agent's loop.* The loop drives `Block.pool` (pool/base.py) and calls `submit`
  and `status`, so neither may wait for a scheduler.
- *Errors.* `submit` and `cancel` raise OncueError or OSError, with the scheduler's own words.
  After a `submit` that raised, nothing is left running.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Protocol

import msgspec

from oncue.endpoint.containers.base import ContainerRuntime
from oncue.endpoint.pool.base import WorkerPool
from oncue.endpoint.pool.limits import WorkerLimits
from oncue.endpoint.pool.orphans import Orphans
from oncue.endpoint.pool.pinning import Pinning


class BlockState(Enum):
    """State of a block."""

    PENDING = "pending"  # accepted; no worker has started yet
    RUNNING = "running"  # a worker has started
    ENDED = "ended"  # final


class BlockRequest(msgspec.Struct, frozen=True):
    """Size of a block to submit."""

    id: str  # unique at this endpoint
    workers: int


class BlockStatus(msgspec.Struct, frozen=True):
    """State of a block, and what a user should know of it."""

    state: BlockState
    reason: str = ""


class Block(msgspec.Struct, frozen=True):
    """A block that was submitted."""

    id: str
    pool: WorkerPool


class ProviderContext(msgspec.Struct, frozen=True):
    """Folders and container runtime that the agent gives a provider."""

    folder: Path  # of the endpoint; `work` in it is the workers' working directory
    blobs: Path  # large arguments and results, shared with the workers
    container: ContainerRuntime
    pass_env: tuple[str, ...] = ()  # see EndpointSettings
    limits: WorkerLimits = WorkerLimits()
    orphans: Orphans | None = None  # set if the agent's process adopts those of its workers
    server_blobs: Path | None = None  # the server's folder of blobs, if it is on this machine
    environment: Mapping[str, str] = {}  # variables that the workers get in addition
    pinning: Pinning | None = None  # of workers to cores and GPUs


class Provider(Protocol):
    """A source of workers: this machine, or a scheduler. See the contract above."""

    def submit(self, request: BlockRequest) -> Block:
        """Start a block. Raises OncueError, OSError."""
        ...

    def status(self, ids: Sequence[str]) -> dict[str, BlockStatus]:
        """Return the states of these blocks, except unknown ones."""
        ...

    def cancel(self, ids: Sequence[str], grace_s: float) -> None:
        """End these blocks, after `grace_s` seconds for running tasks.

        Returns when they have ended; their pools can be drained once more. Ended blocks are left
        alone. Raises OncueError, OSError.
        """
        ...
