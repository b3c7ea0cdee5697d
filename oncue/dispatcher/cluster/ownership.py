"""Ownership of partitions, and so of endpoints, by this server and by others.

    group of oncue.control ──partitions──► Claim in each (its offset + 1: the epoch)
      ──► Fence in oncue.results ──► the view has all earlier records
      ──► channels open; triggers, stateful rules start

    a newer claim of another server, read from the log, or a new assignment
      ──► channels close, agents are redirected

An endpoint belongs to the partition of oncue.control that the hash of its id gives. So does other
work that one server must do alone, such as a file trigger, by its name. Two servers may both
believe for a moment that they own a partition. Agents obey the higher epoch, and ends that the
other server decided come after the fence and are ignored. If the log belongs to one process there
is one partition, which is claimed at the start and never lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable

import msgspec

from oncue.clocks.process import now_us
from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.dispatcher.bridge.message_numbers import refuse_protocol
from oncue.dispatcher.bridge.socket import BridgeSocket
from oncue.dispatcher.context import ServerContext
from oncue.errors import LogError, OncueError
from oncue.log import Assignment, Record
from oncue.log.base import partition_of
from oncue.protocol import bridge
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION, Claim, EndpointRecord, Fence
from oncue.protocol.topics import CONTROL, REGISTRY, RESULTS
from oncue.view import ClaimRow

log = logging.getLogger("oncue.owners")
GROUP = "oncue.owners"
#: Pause after an error, and before a partition that another server has claimed is claimed again.
PAUSE_S = 1.0
RENEW_S = 86_400.0  # claims are repeated, so that retention does not remove them from the log
MANY_CANCELS = 100_000
CATCH_UP_S = 24 * 3600.0  # for a view that is far behind


class PartitionOwnership:
    """The partitions that this server owns, and the newest claim of each.

    Call `start`, later `close`.
    """

    def __init__(
        self,
        context: ServerContext,
        bridge: BridgeSocket,
        follow_tasks: Callable[[str], None],
        me: Claim,
        on_change: Callable[[], None],
    ) -> None:
        """`follow_tasks(topic)`: make the view read a topic of tasks, too.

        `me`: addresses of this server. `on_change`: called after this server has gained or lost
        partitions.
        """
        self._context, self._bridge, self._follow_tasks = context, bridge, follow_tasks
        self._me, self._on_change = me, on_change
        self._partitions = 1
        self._claims: dict[int, ClaimRow] = {}  # partition -> its newest claim
        self._epochs: dict[int, int] = {}  # partition -> epoch, of the owned partitions
        self._assigned: frozenset[int] = frozenset()  # partitions, by the group
        self._contested = asyncio.Event()  # an assigned partition must be claimed again
        self._changed = asyncio.Condition()
        self._admitted: set[str] = set()  # endpoints whose key may connect
        self._revoked: set[str] = set()
        # Endpoint -> cancelled open tasks. Set while channels are opened.
        self._cancels: dict[str, list[bytes]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._assignment: Assignment | None = None

    # ------------------------------------------------------------ queries

    def partition(self, key: str) -> int:
        """Return the partition of an endpoint (id), a trigger (name) or other work."""
        return partition_of(key.encode(), self._partitions)

    def owns(self, key: str) -> bool:
        """Return True if this server owns the partition of `key`."""
        return self.partition(key) in self._epochs

    def is_exclusive(self, key: str) -> bool:
        """Return True if no other server can own `key` now.

        Records that are durable now precede any record of a later owner.
        """
        return self.owns(key) and self._assignment is not None and self._assignment.is_exclusive()

    def latest_claim(self, key: str) -> ClaimRow | None:
        """Return the newest claim of the partition of `key`."""
        return self._claims.get(self.partition(key))

    def other_blob_stores(self) -> list[str]:
        """Return the servers with another blob store.

        This server cannot read their blobs.
        """
        found = {
            row.claim.url or row.claim.server for row in self._claims.values() if row.claim.blobs != self._me.blobs
        }
        return sorted(found) if self._context.log.shared else []

    def owner_label(self, key: str) -> str:
        """Return the URL or id of the owner of `key`, for messages; "" if unknown."""
        row = self.latest_claim(key)
        return (row.claim.url or row.claim.server) if row is not None else ""

    def owner_url(self, key: str) -> str:
        """Return the API URL of the other server that owns `key`;

        "" if this one does, or none is known.
        """
        row = self.latest_claim(key)
        if row is None or self.owns(key) or row.claim.server == self._me.server or row.claim.url == self._me.url:
            return ""
        return row.claim.url

    def peer_urls(self) -> list[str]:
        """Return the API URLs of the other servers that own partitions."""
        urls = {row.claim.url for row in self._claims.values() if row.claim.server != self._me.server}
        return sorted(urls - {"", self._me.url}) if self._context.log.shared else []

    def advertise(self, url: str) -> None:
        """Set this server's API URL.

        Partitions that were claimed with another URL are claimed again.
        """
        if url != self._me.url and self._context.log.shared:
            self._me = msgspec.structs.replace(self._me, url=url)
            self._contested.set()

    async def wait_until(self, key: str, owns: bool) -> None:
        """Wait until this server owns `key`, or with owns=False until it does not."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.owns(key) is owns)

    async def run_while_owned(self, key: str, work: Callable[[], Awaitable[None]]) -> None:
        """Wait until this server owns `key`, then run `work`.

        `work` runs until it ends or the ownership is lost. Raises errors of `work`.
        """
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
        """Join the group.

        If the log belongs to this process, it owns all partitions when this returns.
        """
        self._partitions = (await self._context.log.topics())[CONTROL].partitions
        self._claims = {row.partition: row for row in await self._context.view.claims()}
        self._report_blob_stores(self.other_blob_stores())
        self.sync_endpoints(everything=True)
        self._assignment = self._context.log.join_group(CONTROL, GROUP)
        if not self._context.log.shared:
            await self._take_over(await self._assignment.next())
        self._tasks = [
            asyncio.create_task(self._follow(self._assignment), name="owners"),
            asyncio.create_task(self._renew(), name="claims"),
        ]

    async def close(self) -> None:
        """Leave the group, so that others get the partitions at once.

        The bridge closes the channels.
        """
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._epochs.clear()
        if self._assignment is not None:
            await self._assignment.close()

    async def _follow(self, assignment: Assignment) -> None:
        change = asyncio.ensure_future(assignment.next())
        try:
            while True:
                again = asyncio.ensure_future(self._contested.wait())
                await asyncio.wait((change, again), return_when=asyncio.FIRST_COMPLETED)
                again.cancel()
                try:
                    if change.done():
                        assigned = change.result()
                        change = asyncio.ensure_future(assignment.next())
                        await self._take_over(assigned)
                    else:
                        await asyncio.wait((change,), timeout=PAUSE_S)
                        # Otherwise the group has assigned them to another server, and `next` will
                        # return.
                        if not change.done() and assignment.is_exclusive():
                            await self._take_over(self._assigned)
                except OncueError as e:
                    log.error("this server's membership in the group of owners failed: %s", e)
                    if change.done() and not isinstance(change.exception(), LogError):
                        raise
                    if change.done():
                        change = asyncio.ensure_future(assignment.next())
                    self._contested.set()  # claim again when the log can be written
                    await asyncio.sleep(PAUSE_S)
        finally:
            change.cancel()
            await asyncio.gather(change, return_exceptions=True)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            with contextlib.suppress(OncueError):
                await self._claim(list(self._epochs))

    # ------------------------------------------------------------ gain and lose partitions

    async def _take_over(self, assigned: frozenset[int]) -> None:
        """Own the assigned partitions, and no others. Raises LogError."""
        self._assigned = assigned
        self._contested.clear()
        for partition in [p for p in self._epochs if p not in assigned]:
            self._lose(partition, "the servers have divided the endpoints anew")
        # A former owner may have claimed a partition meanwhile.
        await self._view_caught_up((CONTROL,))
        for row in await self._context.view.claims():
            self._learn(row)
        epochs = await self._claim(
            [p for p in assigned if p not in self._epochs or self._claims[p].claim.url != self._me.url]
        )
        endpoints = {self._context.registry.tasks_topic(e.id) for e in self._endpoints(epochs)}
        await self._view_caught_up((CONTROL, RESULTS, REGISTRY, *endpoints))
        await self._context.reload()
        # The group may have assigned a partition to another server before this claim was written.
        # Such a claim must not take effect, so that each owner's claim precedes the claim of its
        # successor.
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
            log.info("this server owns %d of %d partitions", len(self._epochs), self._partitions)
        self._cancels = {}
        for task_id, endpoint in await self._context.view.cancels(MANY_CANCELS):
            self._cancels.setdefault(endpoint, []).append(task_id)
        self.sync_endpoints(everything=True)
        self._cancels = {}
        await self._notify()

    async def _view_caught_up(self, topics: Iterable[str]) -> None:
        ends = await self._context.log.end_offsets(topics)
        await self._context.view.wait_for(ends, CATCH_UP_S)

    async def _claim(self, partitions: list[int]) -> dict[int, int]:
        """Append claims, durable and fenced. Return the epoch of each partition."""
        if not partitions:
            return {}
        context, at = self._context, now_us()
        record = [Record(encode(msgspec.structs.replace(self._me, at_us=at)), key=self._me.server.encode())]
        futures = [context.log.append(CONTROL, record, p) for p in partitions]
        epochs = {
            p: position.first + 1 for p, (position,) in zip(partitions, await asyncio.gather(*futures), strict=True)
        }
        for partition, epoch in epochs.items():
            # Renewed: later ends of its channels may come after the fence.
            if partition in self._epochs:
                self._epochs[partition] = epoch
                for channel in self._channels(partition):
                    channel.epoch = epoch if context.log.shared else max(epoch, channel.epoch)
        if context.log.shared:
            fence = Fence(VERSION, self._me.server, self._partitions, tuple(epochs.items()), at)
            await context.log.append(RESULTS, [Record(encode(fence))], 0)
        return epochs

    def on_claim(self, partition: int, offset: int, claim: Claim) -> None:
        """Handle a claim that the view has applied."""
        self._learn(ClaimRow(partition, offset + 1, claim))

    def _learn(self, row: ClaimRow) -> None:
        known = self._claims.get(row.partition)
        if known is not None and known.epoch >= row.epoch:
            return
        before = self.other_blob_stores()
        self._claims[row.partition] = row
        self._report_blob_stores(set(self.other_blob_stores()) - set(before))
        if row.partition in self._epochs and row.claim.server != self._me.server:
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
        if self._tasks:  # not during start
            self._notifying = asyncio.ensure_future(self._notify())

    async def _notify(self) -> None:
        self._on_change()
        async with self._changed:
            self._changed.notify_all()

    # ------------------------------------------------------------ endpoints

    def sync_endpoints(self, everything: bool = False) -> list[EndpointRecord]:
        """Apply what has changed in the registry, or everything.

        Allow registered keys, and open channels for owned endpoints. Return the owned endpoints
        that were revoked since the last call.
        """
        context = self._context
        revoked: list[EndpointRecord] = []
        changed = context.registry.drain_changed()
        for e in context.registry.endpoints() if everything else changed:
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
            sole=not context.log.shared,
        )
        channel.servers = self._servers()
        self._bridge.open(channel)
        if cancelled := self._cancels.get(e.id):  # before anything is sent
            self._bridge.with_channel(e.id, lambda channel: channel.cancel(cancelled, "cancelled"))

    def _endpoints(self, partitions: Iterable[int]) -> list[EndpointRecord]:
        wanted = set(partitions)
        return [e for e in self._context.registry.endpoints() if self.partition(e.id) in wanted]

    def _channels(self, partition: int) -> list[EndpointChannel]:
        return [channel for channel in self._bridge.channels.values() if self.partition(channel.endpoint) == partition]

    # ------------------------------------------------------------ agents of others

    def _servers(self) -> tuple[tuple[str, str], ...]:
        """Return the bridge addresses and keys of all owners.

        There are none if the log belongs to one process.
        """
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
        """Return the answer to an agent whose endpoint has no channel here, or None.

        Raises Undecodable.
        """
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
