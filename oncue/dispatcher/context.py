"""What all parts of the server stand on: the log, the view, the blobs, the board, and the registry as it is in force.

The registry (endpoints, tokens) is small and asked for by every request, so a copy is kept in memory; the feeder says when
the view has new entries.
"""

from __future__ import annotations

import asyncio
import secrets as random_secrets
from collections.abc import Iterable, Sequence

import oncue
from oncue.blobs import Blobs
from oncue.config import Settings
from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.bridge.socket import BridgeSocket
from oncue.dispatcher.cluster.ownership import PartitionOwnership
from oncue.dispatcher.cluster.peers import PeerClient
from oncue.dispatcher.metrics import Metrics
from oncue.dispatcher.notifier import Notifier
from oncue.dispatcher.view_consumer import ViewConsumer
from oncue.errors import DiskFull, Forbidden, NotFound, NotReady
from oncue.ids import now_us
from oncue.log import Log, Position, Record
from oncue.protocol.codec import encode
from oncue.protocol.records import EndpointRecord, Registry, TokenRecord
from oncue.protocol.topics import REGISTRY, TaskTopics
from oncue.view import View

CATCH_UP_S = 30.0
READ_OWN_WRITES_S = 2.0


class ServerContext:
    """Shared by the desks (one a noun), which the service puts together."""

    log: Log
    view: View
    bridge: BridgeSocket
    feeder: ViewConsumer
    owners: PartitionOwnership

    def __init__(self, settings: Settings, blobs: Blobs, metrics: Metrics) -> None:
        self.settings, self.blobs, self.metrics = settings, blobs, metrics
        self.task_topics = TaskTopics(settings.task_topics)
        self.server_id = "srv_" + random_secrets.token_hex(6)
        self.version = oncue.__version__
        self.started_us = now_us()
        self.board = Notifier()
        self.across = PeerClient()
        self.ready = False
        self.disk_full = ""  # why nothing new is accepted; "": it is
        self._endpoints: dict[str, EndpointRecord] = {}
        self._endpoint_names: dict[tuple[str, str], str] = {}
        self._tokens: dict[str, TokenRecord] = {}

    # ------------------------------------------------------------ the log and the view

    def accepting(self) -> None:
        """Raises NotReady or DiskFull when nothing new may be accepted."""
        if not self.ready:
            raise NotReady("the server is starting or stopping", remedy="try again in a moment")
        if self.disk_full:
            raise DiskFull(self.disk_full, remedy="free space on that disk, or move the data folder (oncue up --data)")

    async def barrier(self, topics: Iterable[str]) -> None:
        """Wait until the view has all that was handed to the log for these topics by now."""
        await self.log.commit("oncue.barrier", [], [])
        await self.view.wait_for(await self.log.end_offsets(topics), CATCH_UP_S)

    async def wait_for(self, position: str) -> None:
        """Oncue-Position: wait (2 s at most) until the view has it. A position that is not one is ignored."""
        wanted: dict[tuple[str, int], int] = {}
        for entry in position.split(","):
            topic, _, rest = entry.strip().rpartition(":")
            topic, _, partition = topic.rpartition(":")
            if topic and partition.isdigit() and rest.isdigit():
                wanted[topic, int(partition)] = int(rest)
        if wanted:
            await self.view.wait_for(wanted, READ_OWN_WRITES_S)

    async def record(self, entries: Sequence[tuple[str, Registry]]) -> str:
        """Append (key, record) pairs to the registry, all or nothing; returns when they are in force here."""
        return position_text(await self.record_at(entries))

    async def record_at(self, entries: Sequence[tuple[str, Registry]]) -> list[Position]:
        """The same, and where they are."""
        records = [Record(encode(entry), key=key.encode()) for key, entry in entries]
        positions = await self.log.append(REGISTRY, records)
        await self.seen(positions)
        await self.reload()
        return positions

    async def registry_caught_up(self) -> None:
        """What was registered by now, through whatever server, is in force here."""
        await self.view.wait_for(await self.log.end_offsets((REGISTRY,)), CATCH_UP_S)
        await self.reload()

    async def seen(self, positions: Iterable[Position]) -> None:
        """Wait until the view has what was appended there."""
        await self.view.wait_for({(p.topic, p.partition): p.first + p.count for p in positions}, CATCH_UP_S)

    async def reload(self) -> None:
        """Take the registry from the view into memory."""
        endpoints = await self.view.endpoints()
        self._endpoints = {e.id: e for e in endpoints}
        # Of two that were registered at once, until one of them is taken back: the first.
        self._endpoint_names = {(e.owner, e.name): e.id for e in reversed(endpoints) if not e.revoked}
        self._tokens = {t.hash: t for t in await self.view.tokens()}

    # ------------------------------------------------------------ people and endpoints

    def token(self, hash_hex: str) -> TokenRecord | None:
        return self._tokens.get(hash_hex)

    def find_endpoint(self, who: Caller, name: str) -> EndpointRecord:
        """By name (one's own first) or id. Raises NotFound or Forbidden, with what there is instead."""
        endpoint_id = self._endpoint_names.get((who.subject, name))
        found = self._endpoints.get(endpoint_id or name)
        if found is None and "admin" in who.scopes:
            found = next((e for e in self._endpoints.values() if e.name == name and not e.revoked), None)
        if found is None or found.revoked:
            mine = sorted(n for owner, n in self._endpoint_names if owner == who.subject)
            if (gone := self._revoked(name, who.subject)) is not None:
                others = f"; or use another: {', '.join(mine)}" if mine else ""
                raise NotFound(
                    f"the endpoint {name!r} was revoked",
                    remedy=f"on its machine, it gets new keys with: oncue endpoint register {gone.name}{others}",
                )
            raise NotFound(
                f"there is no endpoint {name!r}",
                remedy=f"yours are: {', '.join(mine)}" if mine else "start one: oncue endpoint register NAME",
            )
        if not who.sees(found.owner):
            raise Forbidden(f"endpoint {name!r} serves its owner only", remedy="run an endpoint of your own")
        return found

    def _revoked(self, name: str, owner: str) -> EndpointRecord | None:
        """By name or id: one that this owner had."""
        mine = (e for e in self._endpoints.values() if e.revoked and e.owner == owner)
        return next((e for e in mine if name in (e.name, e.id)), None)

    def tasks_topic(self, endpoint: str) -> str:
        return self.task_topics.of(endpoint)

    def is_revoked(self, name: str, owner: str) -> bool:
        """For rules: why there is no endpoint_id."""
        return self._revoked(name, owner) is not None

    def all_endpoints(self) -> list[EndpointRecord]:
        """Also revoked ones."""
        return list(self._endpoints.values())

    def endpoint_id(self, name: str, owner: str) -> str | None:
        """For rules: the endpoint that this owner means."""
        found = self._endpoint_names.get((owner, name))
        if found is None and name in self._endpoints and self._endpoints[name].owner == owner:
            return name
        return found

    def endpoint_name(self, endpoint_id: str) -> str:
        found = self._endpoints.get(endpoint_id)
        return found.name if found else endpoint_id


def position_text(positions: Iterable[Position]) -> str:
    """For the Oncue-Position header: topic:partition:offset, comma separated."""
    return ",".join(f"{p.topic}:{p.partition}:{p.first + p.count}" for p in positions)


async def cancel_and_wait(tasks: Iterable[asyncio.Task[object]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
