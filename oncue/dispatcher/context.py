"""State that all parts of a server share: log, view, blobs, registry.

`Server` opens log and view, makes one ServerContext, and gives it to each service. A service states
its other needs in its own `__init__`.
"""

from __future__ import annotations

import secrets as random_secrets
from collections.abc import Callable, Iterable, Sequence

import oncue
from oncue.blobs import Blobs
from oncue.clocks.process import now_us
from oncue.config import Settings
from oncue.dispatcher.blob_quota import NAME as BLOB_OWNERS
from oncue.dispatcher.blob_quota import BlobQuota
from oncue.dispatcher.metrics.metrics import Metrics
from oncue.dispatcher.notifier import Notifier
from oncue.dispatcher.registry_cache import RegistryCache
from oncue.errors import DiskFull, NotReady
from oncue.log import Log, Position, Record
from oncue.log.base import OPEN_AGAIN
from oncue.protocol.codec import encode
from oncue.protocol.records import Registry
from oncue.protocol.topics import REGISTRY, TaskTopics
from oncue.view import View

CATCH_UP_S = 30.0
READ_OWN_WRITES_S = 2.0


def new_server_id() -> str:
    """Return a random id for a server process."""
    return "srv_" + random_secrets.token_hex(6)


class ServerContext:
    """Log, view, blobs, notifier, metrics, settings and registry of one server."""

    def __init__(
        self,
        settings: Settings,
        log: Log,
        view: View,
        blobs: Blobs,
        metrics: Metrics,
        notifier: Notifier,
        server_id: str = "",
    ) -> None:
        self.settings, self.log, self.view, self.blobs = settings, log, view, blobs
        self.metrics, self.notifier = metrics, notifier
        self.blob_quota = BlobQuota(settings.data_path / BLOB_OWNERS, blobs, settings.owner_blobs_percent)
        self.registry = RegistryCache(TaskTopics(settings.task_topics))
        self.server_id = server_id or new_server_id()
        self.version = oncue.__version__
        self.started_us = now_us()
        self.newest_us = 0  # of the tasks that were accepted before the start; by wrong clocks perhaps later than it
        self.ready = False
        self.view_trouble: Callable[[], str] = str  # returns why the view does not follow the log
        self.store_id = ""  # of the store of blobs
        self.blobs_trouble = ""  # what was wrong with it at the start
        self.blobs_away = ""  # what is wrong with it now
        self.disk_full = ""  # the reason for which nothing new is accepted; "" if it is accepted

    @property
    def store_trouble(self) -> str:
        """Fault of the store of blobs, now or at the start; "" without one."""
        return self.blobs_trouble or self.blobs_away

    def is_new(self, us: int) -> bool:
        """Return True if what was made at this time is surely none of an earlier process."""
        return us > max(self.started_us, self.newest_us)

    def check_accepting(self) -> None:
        """Raise NotReady or DiskFull if nothing new may be accepted."""
        if not self.ready:
            raise NotReady("the server is starting or stopping", remedy="try again in a moment")
        if self.disk_full:
            raise DiskFull(self.disk_full, remedy="free space on that disk, or move the data folder (oncue up --data)")
        if lost := self.log.lost():
            raise NotReady(f"nothing new is accepted: {lost}", remedy=OPEN_AGAIN)

    # ------------------------------------------------------------ read your own writes

    async def barrier(self, topics: Iterable[str]) -> None:
        """Wait until the view has all records handed to the log for these topics."""
        await self.log.commit("oncue.barrier", [], [])
        await self.view.wait_for(await self.log.end_offsets(topics), CATCH_UP_S)

    async def wait_for(self, position: str) -> None:
        """Wait until the view has reached an `Oncue-Position`, at most 2 s.

        Text of another form is ignored.
        """
        wanted: dict[tuple[str, int], int] = {}
        for entry in position.split(","):
            topic, _, rest = entry.strip().rpartition(":")
            topic, _, partition = topic.rpartition(":")
            if topic and partition.isdigit() and rest.isdigit():
                wanted[topic, int(partition)] = int(rest)
        if wanted:
            await self.view.wait_for(wanted, READ_OWN_WRITES_S)

    async def applied(self, positions: Iterable[Position]) -> None:
        """Wait until the view has applied the records at these positions."""
        await self.view.wait_for({(p.topic, p.partition): p.first + p.count for p in positions}, CATCH_UP_S)

    # ------------------------------------------------------------ the registry

    async def record(self, entries: Sequence[tuple[str, Registry]]) -> list[Position]:
        """Append (key, record) pairs to the registry, all or none.

        They are in force here on return. Raises LogError, DiskFull.
        """
        records = [Record(encode(entry), key=key.encode()) for key, entry in entries]
        positions = await self.log.append(REGISTRY, records)
        await self.applied(positions)
        await self.reload()
        return positions

    async def sync_registry(self) -> None:
        """Wait until all records of the registry, of any server, are in force here."""
        await self.view.wait_for(await self.log.end_offsets((REGISTRY,)), CATCH_UP_S)
        await self.reload()

    async def reload(self) -> None:
        """Load the registry from the view into memory."""
        await self.registry.reload(self.view)


def position_text(positions: Iterable[Position]) -> str:
    """Return the `Oncue-Position` header: topic:partition:offset, comma separated."""
    return ",".join(f"{p.topic}:{p.partition}:{p.first + p.count}" for p in positions)
