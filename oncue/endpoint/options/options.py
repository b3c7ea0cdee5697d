"""Content of `endpoint.yaml`: Structs with checked values.

Times are in milliseconds and sizes in bytes; the file has them as texts (oncue/quantities.py).
Fields that are None are not in the file: `agent.json` has them, or a default.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

from oncue.endpoint.options.mpi import MpiOptions, mpi_launcher
from oncue.endpoint.options.providers import Count, CountOrNone, LocalOptions, ProviderOptions
from oncue.quantities import Duration, Rate, RateLimit, Size, Walltime

HOUR_MS, MINUTE_MS = 3_600_000, 60_000
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class BlockOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Number and size of blocks, the batch jobs that hold workers."""

    min: CountOrNone = 0  # held also without work
    max: Count = 1
    initial: CountOrNone = 0  # asked for when the agent starts
    nodes: Count = 1  # of a block
    walltime_ms: Walltime = msgspec.field(name="walltime", default=HOUR_MS)
    idle_ms: Duration = msgspec.field(name="idle", default=2 * MINUTE_MS)  # without work, before a block is given back

    def __post_init__(self) -> None:
        if self.max < self.min:
            raise ValueError(f"max: {self.max} is less than min, {self.min}")
        if self.initial > self.max:
            raise ValueError(f"initial: {self.initial} is more than max, {self.max}")
        if self.walltime_ms < MINUTE_MS:
            raise ValueError("walltime: a block lives for a minute at least; write 30m, 2h or 1:30:00")


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Workers of a node: their number, or the share of the node that each gets.

    With several shares the number is what all of them allow. Nothing given: one worker per core.
    """

    per_node: Count | None = None
    cores: Count | None = None  # of each worker
    memory: Size | None = None
    gpus: Count | None = None
    pin: Literal["cores", "gpus"] | None = None  # each worker has its own ones, and sees no others

    def __post_init__(self) -> None:
        shares = [name for name in ("cores", "memory", "gpus") if getattr(self, name) is not None]
        if self.per_node is not None and shares:
            raise ValueError(f"per_node: the number is given already by {shares[0]}; remove one of them")
        if self.memory == 0:
            raise ValueError("memory: a worker needs some; write 8GB")


class LimitOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of what the endpoint asks of a scheduler."""

    node_hours: RateLimit | None = None  # 200/week; None: no limit
    pending_blocks: Count = 2  # that wait in the scheduler's queue
    submits: RateLimit = Rate(6, MINUTE_MS)
    failed_blocks: Count = 3  # in a row that end before a worker has registered; then none is asked for


class NetworkOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Address of the agent that nodes dial."""

    interface: str = ""  # such as ib0 or hsn0; "": the address by which the host's name is known
    address: str = ""  # name or IP address, instead of an interface
    port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 0  # 0: any free port

    def __post_init__(self) -> None:
        if self.interface and self.address:
            raise ValueError("address: the interface has one already; remove one of them")


class EndpointOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Content of `endpoint.yaml`."""

    provider: ProviderOptions = LocalOptions()
    blocks: BlockOptions = BlockOptions()
    workers: WorkerOptions = WorkerOptions()
    limits: LimitOptions = LimitOptions()
    network: NetworkOptions = NetworkOptions()
    mpi: MpiOptions = MpiOptions()
    environment: dict[str, str | int] = {}  # variables that the workers get in addition
    pass_env: tuple[str, ...] | None = None  # the following are also in agent.json
    max_tasks: CountOrNone | None = None
    max_memory: Size | None = None
    threads: CountOrNone | None = None
    grace_ms: Duration | None = msgspec.field(name="grace", default=None)
    spool_bytes: Size | None = msgspec.field(name="spool", default=None)
    debuggable: bool | None = None

    def __post_init__(self) -> None:
        if wrong := [name for name in self.environment if not _VARIABLE.fullmatch(name) or name.startswith("ONCUE_")]:
            why = "is oncue's own" if wrong[0].startswith("ONCUE_") else "is not the name of a variable"
            raise ValueError(f"environment.{wrong[0]}: {wrong[0][:60]!r} {why}")

    @property
    def mpi_launcher(self) -> str:
        """Command line that starts the ranks of MPI functions, with placeholders."""
        return mpi_launcher(self.mpi, self.provider)

    def variables(self) -> dict[str, str]:
        """Return `environment` as processes have it."""
        return {name: str(value) for name, value in self.environment.items()}
