"""Which endpoints this server acts for, and who acts for the others.

    group of oncue.control ──partitions──► Claim in each (its offset + 1: the epoch) ──► Fence in oncue.results
                                             ──► the view has all from before ──► lanes open; triggers, windows of these keys
    a newer claim of another server, read from the log, or the group's word ──► lanes close, agents are sent there

An endpoint belongs to the partition of oncue.control that its id's hash says, and so does whatever else one server must do
alone (a file trigger, by its name). Two servers may both think for a moment that they act for one: the agent obeys the higher
epoch, and ends that the other made up itself stand behind the fence and do not count. Where the log is one process's alone
there is one partition, claimed at the start and never lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable

import msgspec

from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.dispatcher.bridge.session import refuse_protocol
from oncue.dispatcher.bridge.socket import BridgeSocket
from oncue.dispatcher.context import ServerContext
from oncue.errors import LogError, OncueError
from oncue.ids import now_us
from oncue.log import Assignment, Record
from oncue.log.base import partition_of
from oncue.protocol import bridge
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION, Claim, EndpointRecord, Fence
from oncue.protocol.topics import CONTROL, REGISTRY, RESULTS
from oncue.view import ClaimRow

log = logging.getLogger("oncue.owners")
GROUP = "oncue.owners"
PAUSE_S = 1.0  # after what failed, and before a partition is claimed again that another has claimed
RENEW_S = 86_400.0  # claims are said again, so that the log's retention does not forget them
MANY = 100_000  # cancels that are under way
PATIENCE_S = 24 * 3600.0  # with a view that is far behind


class PartitionOwnership:
    """`start`, then `close`. `on_change` is called after partitions came or went."""

    def __init__(
        self,
        context: ServerContext,
        bridge: BridgeSocket,
        follow_tasks: Callable[[str], None],
        me: Claim,
        on_change: Callable[[], None],
    ) -> None:
        """`follow_tasks`: has the view read this topic, too. `me`: how others reach this server."""
        self._context, self._bridge, self._follow_tasks = context, bridge, follow_tasks
        self._me, self._on_change = me, on_change
        self._partitions = 1
        self._claims: dict[int, ClaimRow] = {}  # the newest
        self._epochs: dict[int, int] = {}  # partition -> epoch, where this server acts
        self._assigned: frozenset[int] = frozenset()  # by the group
        self._contested = asyncio.Event()  # another has claimed what the group gave to this server, or claims are old
        self._changed = asyncio.Condition()
        self._admitted: set[str] = set()  # endpoints
        self._revoked: set[str] = set()
        self._cancels: dict[
            str, list[bytes]
        ] = {}  # endpoint -> tasks that somebody has cancelled, while lanes are opened
        self._tasks: list[asyncio.Task[None]] = []
        self._assignment: Assignment | None = None

    # ------------------------------------------------------------ asked

    def partition(self, key: str) -> int:
        return partition_of(key.encode(), self._partitions)

    def owns(self, key: str) -> bool:
        """Whether this server acts for this endpoint (id), trigger (name) ..."""
        return self.partition(key) in self._epochs

    def is_exclusive(self, key: str) -> bool:
        """Whether it surely is the only one that does, now: what is durable now came before whatever another may do."""
        return self.owns(key) and self._assignment is not None and self._assignment.is_exclusive()

    def latest_claim(self, key: str) -> ClaimRow | None:
        """Who has claimed it last."""
        return self._claims.get(self.partition(key))

    def other_blob_stores(self) -> list[str]:
        """The servers that keep their blobs elsewhere: what is large cannot be had through all."""
        found = {
            row.claim.url or row.claim.server for row in self._claims.values() if row.claim.blobs != self._me.blobs
        }
        return sorted(found) if self._context.log.shared else []

    def owner_label(self, key: str) -> str:
        """Where that is, for people."""
        row = self.latest_claim(key)
        return (row.claim.url or row.claim.server) if row is not None else ""

    def owner_url(self, key: str) -> str:
        """The API of the server that acts for it; "": this one does, or it is not known."""
        row = self.latest_claim(key)
        if row is None or self.owns(key) or row.claim.server == self._me.server or row.claim.url == self._me.url:
            return ""
        return row.claim.url

    def peer_urls(self) -> list[str]:
        """The APIs of the other servers that act for anything."""
        urls = {row.claim.url for row in self._claims.values() if row.claim.server != self._me.server}
        return sorted(urls - {"", self._me.url}) if self._context.log.shared else []

    def advertise(self, url: str) -> None:
        """Where the API is, once it listens: what was claimed with another address is claimed again."""
        if url != self._me.url and self._context.log.shared:
            self._me = msgspec.structs.replace(self._me, url=url)
            self._contested.set()

    async def wait_until(self, key: str, owns: bool) -> None:
        """Wait until this server acts for it; or does not."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.owns(key) is owns)

    async def run_while_owned(self, key: str, work: Callable[[], Awaitable[None]]) -> None:
        """Do it for as long as this server acts for the key; then it is cancelled. Raises what it raises."""
        await self.wait_until(key, True)
        working = asyncio.ensure_future(work())
        lost = asyncio.ensure_future(self.wait_until(key, False))
        try:
            await asyncio.wait((working, lost), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
        finally:
            for task in (working, lost):
                task.cancel()
            await asyncio.gather(working, lost, return_exceptions=True)

    # ------------------------------------------------------------ start and stop

    async def start(self) -> None:
        """Where the log is this process's alone, it acts for all when this returns."""
        self._partitions = (await self._context.log.topics())[CONTROL].partitions
        self._claims = {row.partition: row for row in await self._context.view.claims()}
        self._report_blob_stores(self.other_blob_stores())
        self.sync_endpoints()
        self._assignment = self._context.log.join_group(CONTROL, GROUP)
        if not self._context.log.shared:
            await self._take_over(await self._assignment.next())
        self._tasks = [
            asyncio.create_task(self._follow(self._assignment), name="owners"),
            asyncio.create_task(self._renew(), name="claims"),
        ]

    async def close(self) -> None:
        """Others get the partitions at once, where the log can be reached. The lanes are the bridge's to close."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._epochs.clear()
        if self._assignment is not None:
            await self._assignment.close()

    async def _follow(self, share: Assignment) -> None:
        news = asyncio.ensure_future(share.next())
        try:
            while True:
                again = asyncio.ensure_future(self._contested.wait())
                await asyncio.wait((news, again), return_when=asyncio.FIRST_COMPLETED)
                again.cancel()
                try:
                    if news.done():
                        given = news.result()
                        news = asyncio.ensure_future(share.next())
                        await self._take_over(given)
                    else:
                        await asyncio.wait((news,), timeout=PAUSE_S)
                        # Else the group has given them to the other, and this server will hear of it.
                        if not news.done() and share.is_exclusive():
                            await self._take_over(self._assigned)
                except OncueError as e:
                    log.error("this server's part in the group of owners: %s", e)
                    if news.done() and not isinstance(news.exception(), LogError):
                        raise
                    if news.done():
                        news = asyncio.ensure_future(share.next())
                    self._contested.set()  # what the group gave is claimed when the log can be written again
                    await asyncio.sleep(PAUSE_S)
        finally:
            news.cancel()
            await asyncio.gather(news, return_exceptions=True)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            with contextlib.suppress(OncueError):
                await self._claim(list(self._epochs))

    # ------------------------------------------------------------ partitions come and go

    async def _take_over(self, given: frozenset[int]) -> None:
        """Act for what the group gave, and for nothing else. Raises LogError."""
        self._assigned = given
        self._contested.clear()
        for partition in [p for p in self._epochs if p not in given]:
            self._lose(partition, "the servers have divided the endpoints anew")
        # Whoever had one before may have claimed it since.
        await self._view_caught_up((CONTROL,))
        for row in await self._context.view.claims():
            self._learn(row)
        epochs = await self._claim(
            [p for p in given if p not in self._epochs or self._claims[p].claim.url != self._me.url]
        )
        endpoints = {self._context.registry.tasks_topic(e.id) for e in self._endpoints(epochs)}
        await self._view_caught_up((CONTROL, RESULTS, REGISTRY, *endpoints))
        await self._context.reload()
        # A claim that left this process late, when the group had given its partition to another, must not be acted on:
        # so whoever acts has claimed before its successor has.
        if self._assignment is None or not await self._assignment.wait_until_exclusive():
            return
        for row in await self._context.view.claims():
            self._learn(row)
        for partition, epoch in epochs.items():
            if self._claims[partition].epoch == epoch:
                self._epochs[partition] = epoch
            else:
                self._contested.set()
        if epochs:
            log.info("this server acts for %d of %d partitions", len(self._epochs), self._partitions)
        self._cancels = {}
        for task_id, endpoint in await self._context.view.cancels(MANY):
            self._cancels.setdefault(endpoint, []).append(task_id)
        self.sync_endpoints()
        self._cancels = {}
        await self._notify()

    async def _view_caught_up(self, topics: Iterable[str]) -> None:
        ends = await self._context.log.end_offsets(topics)
        await self._context.view.wait_for(ends, PATIENCE_S)

    async def _claim(self, partitions: list[int]) -> dict[int, int]:
        """partition -> epoch; durable, and fenced."""
        if not partitions:
            return {}
        context, at = self._context, now_us()
        record = [Record(encode(msgspec.structs.replace(self._me, at_us=at)), key=self._me.server.encode())]
        futures = [context.log.append(CONTROL, record, p) for p in partitions]
        epochs = {
            p: position.first + 1 for p, (position,) in zip(partitions, await asyncio.gather(*futures), strict=True)
        }
        for partition, epoch in epochs.items():
            if partition in self._epochs:  # said again: what lanes end from here on may come behind the fence
                self._epochs[partition] = epoch
                for channel in self._channels(partition):
                    channel.epoch = epoch
        if context.log.shared:
            fence = Fence(VERSION, self._me.server, self._partitions, tuple(epochs.items()), at)
            await context.log.append(RESULTS, [Record(encode(fence))], 0)
        return epochs

    def on_claim(self, partition: int, offset: int, claim: Claim) -> None:
        """A claim that the view has now."""
        self._learn(ClaimRow(partition, offset + 1, claim))

    def _learn(self, row: ClaimRow) -> None:
        known = self._claims.get(row.partition)
        if known is not None and known.epoch >= row.epoch:
            return
        before = self.other_blob_stores()
        self._claims[row.partition] = row
        self._report_blob_stores(set(self.other_blob_stores()) - set(before))
        mine = self._epochs.get(row.partition)
        if mine is not None and row.claim.server != self._me.server:
            self._lose(row.partition, "another server acts for this endpoint now")
            self._contested.set()
        self._announce_servers()

    @staticmethod
    def _report_blob_stores(servers: Iterable[str]) -> None:
        for server in servers:
            log.error("the server %s has another folder of blobs: set blobs_folder to one that all servers see", server)

    def _lose(self, partition: int, why: str) -> None:
        channels = self._channels(partition)
        del self._epochs[partition]
        for channel in channels:
            self._bridge.redirect(channel.endpoint, *self._redirect(channel.endpoint, why))
        if self._tasks:  # not while the first of all is settled
            self._notifying = asyncio.ensure_future(self._notify())

    async def _notify(self) -> None:
        self._on_change()
        async with self._changed:
            self._changed.notify_all()

    # ------------------------------------------------------------ endpoints

    def sync_endpoints(self) -> list[EndpointRecord]:
        """After the registry has changed: every registered key may connect, and the endpoints of this server's partitions
        have lanes. Returns those of this server's that have been revoked since the last time."""
        context = self._context
        revoked: list[EndpointRecord] = []
        for e in context.registry.endpoints():
            if e.revoked:
                if e.id not in self._revoked:
                    self._revoked.add(e.id)
                    self._admitted.discard(e.id)
                    self._bridge.revoke(e.id, e.public_key)
                    if self.owns(e.id):
                        revoked.append(e)
                continue
            if e.id not in self._admitted:
                self._admitted.add(e.id)
                self._bridge.admit(e.id, e.public_key)
                self._follow_tasks(context.registry.tasks_topic(e.id))
            epoch = self._epochs.get(self.partition(e.id))
            if epoch is None:
                continue
            if (channel := self._bridge.channels.get(e.id)) is None:
                self._open(e, epoch)
            else:
                channel.lost_after_ms = e.lost_after_ms
        return revoked

    def _open(self, e: EndpointRecord, epoch: int) -> None:
        context = self._context
        channel = EndpointChannel(
            e.id,
            epoch,
            context.server_id,
            context.version,
            lost_after_ms=e.lost_after_ms,
            budget_bytes=context.settings.queue_bytes,
        )
        channel.servers = self._servers()
        self._bridge.open(channel)
        if wishes := self._cancels.get(e.id):  # before anything is sent
            self._bridge.with_channel(e.id, lambda channel: channel.cancel(wishes, "cancelled"))

    def _endpoints(self, partitions: Iterable[int]) -> list[EndpointRecord]:
        wanted = set(partitions)
        return [e for e in self._context.registry.endpoints() if self.partition(e.id) in wanted]

    def _channels(self, partition: int) -> list[EndpointChannel]:
        return [channel for channel in self._bridge.channels.values() if self.partition(channel.endpoint) == partition]

    # ------------------------------------------------------------ agents of others

    def _servers(self) -> tuple[tuple[str, str], ...]:
        """All that act for something; none where there can be but one."""
        if not self._context.log.shared:
            return ()
        claims = [row.claim for row in self._claims.values()]
        return tuple(sorted({(c.bridge, c.server_key) for c in claims if c.bridge}))

    def _announce_servers(self) -> None:
        servers = self._servers()
        for channel in self._bridge.channels.values():
            channel.servers = servers

    def _redirect(self, endpoint: str, why: str) -> tuple[int, bridge.Redirect]:
        row = self.latest_claim(endpoint)
        if row is None or row.claim.server == self._me.server or not row.claim.bridge:
            return (row.epoch if row else 0), bridge.Redirect(why=f"{why}; it is not known yet who acts for it")
        return row.epoch, bridge.Redirect(row.claim.bridge, row.claim.server_key, why)

    def answer_agent(self, endpoint: str, parts: list[bytes]) -> list[bytes] | None:
        """What an agent is told whose endpoint has no lane here; None: nothing. Raises Undecodable."""
        if endpoint not in self._admitted:
            return None
        envelope, _ = bridge.decode_from_agent(parts)
        message = envelope.message
        answer: bridge.FromBridge
        epoch, answer = self._redirect(endpoint, "another server acts for this endpoint")
        if isinstance(message, bridge.Hello) and message.protocol != bridge.PROTOCOL:
            answer = refuse_protocol(message, self._context.version)
        elif epoch < envelope.epoch and answer.bridge:
            answer = bridge.Redirect(why="this server does not know yet who acts for this endpoint")
        return [bridge.encode(bridge.BridgeEnvelope(envelope.session, -1, max(epoch, envelope.epoch), answer))]
