"""Registers, lists and revokes endpoints."""

from __future__ import annotations

import re
import secrets as random_secrets
from typing import TypeVar

import msgspec

from oncue import curve
from oncue.clocks.process import now_us
from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.dispatcher.bridge.effect_runner import EffectRunner
from oncue.dispatcher.bridge.effects import ChannelPhase
from oncue.dispatcher.bridge.pending_tasks import OpenTask
from oncue.dispatcher.bridge.server_ends import end_by_server
from oncue.dispatcher.bridge.socket import BridgeSocket
from oncue.dispatcher.cluster.ownership import PartitionOwnership
from oncue.dispatcher.cluster.peers import PeerClient
from oncue.dispatcher.context import ServerContext
from oncue.dispatcher.off_loop import off_loop_if
from oncue.dispatcher.services.open_reason import takes_none
from oncue.errors import Conflict, Invalid, NotFound
from oncue.log import Record, Topic
from oncue.protocol import api as r
from oncue.protocol.codec import encode
from oncue.protocol.records import NAME_CHARS, REFUSED, VERSION, Call, Ended, EndpointRecord, Failure
from oncue.protocol.reports import BlockReport, Usage
from oncue.protocol.topics import RESULTS

T = TypeVar("T")
REPORT_US = 15_000_000  # agents report every 5 s; one that has not reported for this long is away
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
PAGE = 1_000
ENDPOINTS = 10_000  # of one owner
MANY_ENDPOINTS = 100  # more are described in a thread
ENDPOINTS_EVER = 50_000  # with revoked ones: their records are kept, so that their keys stay refused


class EndpointService:
    """Endpoints of all owners, as this server, its agents and its peers know them."""

    def __init__(
        self,
        context: ServerContext,
        bridge: BridgeSocket,
        effects: EffectRunner,
        ownership: PartitionOwnership,
        peers: PeerClient,
        server_key: str,
    ) -> None:
        """`server_key`: the bridge's public CURVE key, in Z85."""
        self._context, self._bridge, self._effects = context, bridge, effects
        self._ownership, self._peers, self._server_key = ownership, peers, server_key

    # ------------------------------------------------------------ register

    async def register(self, caller: Caller, request: r.EndpointRequest) -> r.Registered:
        """Register a name with its public key.

        Repeating it with the same key updates labels and lost_after_ms.
        Raises Conflict if the name has another key, or the key another endpoint; Invalid.
        """
        context = self._context
        context.check_accepting()
        key = _check(request)
        if context.log.shared:
            await context.sync_registry()
        known = context.registry.named(request.name, caller.subject)
        self._check_conflicts(caller, request.name, key, known)
        record = EndpointRecord(
            VERSION,
            known.id if known else "ep_" + random_secrets.token_hex(8),
            request.name,
            caller.subject,
            key,
            known.at_us if known else now_us(),
            False,
            _given(request.lost_after_ms, known.lost_after_ms if known else 0),
            _given(request.labels, known.labels if known else {}),
            known.token if known else caller.token_id,
        )
        if record != known:
            await context.log.ensure({context.registry.tasks_topic(record.id): Topic()})
            (position,) = await context.record([(f"endpoint:{record.id}", record)])
            if known is None and context.log.shared:
                await self._check_first(record, position.first)
        await self._sync()
        s = context.settings
        return r.Registered(
            id=record.id,
            name=record.name,
            server_key=self._server_key,
            bridge=curve.address(s.advertise_host or s.bridge_host or s.host, self._bridge.port),
        )

    async def _sync(self, besides: str = "") -> None:
        """Put changed endpoints in force; close tasks of those others have revoked."""
        for endpoint in self._ownership.sync_endpoints():
            if endpoint.id != besides:
                await close_open_tasks(self._context, endpoint)

    def _check_conflicts(self, caller: Caller, name: str, key: bytes, known: EndpointRecord | None) -> None:
        own, ever = self._context.registry.endpoint_counts(caller.subject)
        if known is None and own >= ENDPOINTS:
            raise Conflict(
                f"you have {own:,} endpoints; at most {ENDPOINTS:,} are kept",
                remedy="revoke those that are not needed: oncue endpoints list",
            )
        if known is None and ever >= ENDPOINTS_EVER:
            raise Conflict(
                f"you have registered {ever:,} endpoints, with revoked ones; at most {ENDPOINTS_EVER:,} are kept",
                remedy="use one of those that are in force: oncue endpoints list",
            )
        if known is not None and known.public_key != key:
            raise Conflict(
                f"there is an endpoint {name!r} with another key",
                remedy=f"use another name, or revoke the old one: oncue endpoints revoke {name}",
            )
        known_id = known.id if known else None
        same_key = (e for e in self._context.registry.with_key(key) if e.id != known_id)
        other = next(same_key, None)
        if other is not None and other.revoked and other.owner == caller.subject:
            raise Conflict(
                f"this key was revoked, with the endpoint {other.name!r}",
                remedy=f"a revoked key stays refused; register with a new one: oncue endpoint register {name}",
                revoked_key=True,
                endpoint=other.id,
            )
        if other is not None:
            raise Conflict("this key belongs to another endpoint", remedy="make a new key: remove the agent's folder")

    async def _check_first(self, record: EndpointRecord, offset: int) -> None:
        """Revoke the endpoint and raise Conflict if another server was first.

        All servers read the registry in the same order, so they agree on which was first.
        """
        for place, other in await self._context.view.endpoint_positions(record.name):
            if place < offset and other.owner == record.owner and other.id != record.id and not other.revoked:
                await self._context.record([(f"endpoint:{record.id}", msgspec.structs.replace(record, revoked=True))])
                raise Conflict(
                    f"there is an endpoint {record.name!r} with another key, registered through another server just now",
                    remedy=f"use another name, or revoke the other one: oncue endpoints revoke {record.name}",
                )

    # ------------------------------------------------------------ look up

    async def all(self, caller: Caller, after: str = "", limit: int = 0) -> list[r.EndpointInfo]:
        """Return the endpoints that the caller may see, by name.

        At most `limit`; 0: all. `after`: id of the last one that was seen. Raises NotFound if there
        is none.
        """
        registry = self._context.registry
        counts, reports = await self._context.view.open_counts(), await self._reports()
        last = registry.endpoint(after)
        if after and (last is None or not caller.sees(last.owner)):
            raise NotFound(f"there is no endpoint with the id {after!r}", remedy="list from the start: without `after`")
        known = registry.endpoints()

        def describe() -> list[r.EndpointInfo]:
            found = sorted((e for e in known if caller.sees(e.owner)), key=_place)
            found = [e for e in found if last is None or _place(e) > _place(last)]
            return [self._info(e, counts.get(e.id, 0), reports.get(e.id)) for e in found[: limit or len(found)]]

        return await off_loop_if(len(known) > MANY_ENDPOINTS, describe)

    async def get(self, caller: Caller, name: str, bearer: str = "") -> r.EndpointInfo:
        """Return one endpoint. Raises NotFound.

        `bearer`: the caller's Authorization header, to ask that server; "" to ask nobody.
        """
        found = self._context.registry.find_endpoint(caller, name)
        counts, reports = await self._context.view.open_counts(), await self._reports()
        info = self._info(found, counts.get(found.id, 0), reports.get(found.id))
        if found.revoked:
            return info
        return await self._peers.endpoint(self._ownership.owner_url(found.id), info, bearer)

    async def _reports(self) -> dict[str, Usage]:
        """Return the last reports of agents. A single server has newer ones in memory."""
        return await self._context.view.usage() if self._context.log.shared else {}

    def _info(self, e: EndpointRecord, waiting: int, report: Usage | None) -> r.EndpointInfo:
        channel = self._bridge.channels.get(e.id)
        if channel is None and not e.revoked:
            place = self._ownership.owner_label(e.id)
            why = f"the server {place} acts for it" if place else "no server acts for it yet"
            return _info_by_report(e, waiting, report, why)
        if channel is not None and channel.hello is None and report is not None and not e.revoked:
            why = (
                self._effects.phase_reasons.get(e.id)
                or "its agent has not come to this server yet, which acts for it now"
            )
            return _info_by_report(e, waiting, report, why)
        return self._info_by_channel(e, waiting, channel)

    def _info_by_channel(self, e: EndpointRecord, waiting: int, channel: EndpointChannel | None) -> r.EndpointInfo:
        usage = self._effects.usage.get(e.id)
        state, since, hello = "revoked", 0, None
        if channel is not None and not e.revoked:
            state, since, hello = channel.phase.value, channel.since_us, channel.hello
            if channel.phase is ChannelPhase.AWAY and hello is None:
                state = "never"
        here = state == "connected"
        why = self._effects.phase_reasons.get(e.id, "")
        if channel is not None and channel.full and here:
            why = takes_none("it", channel)
        info = r.EndpointInfo(
            id=e.id,
            name=e.name,
            owner=e.owner,
            state=state,
            since_us=since,
            workers=hello.workers if hello and here else 0,
            busy=usage.busy if usage and here else 0,
            queued=len(channel.in_flight) if channel else 0,
            waiting=waiting,
            host=hello.host if hello else "",
            agent_version=hello.agent_version if hello else "",
            python=hello.python if hello else "",
            labels=e.labels,
            why=why,
            lost_after_ms=e.lost_after_ms,
        )
        return _with_usage(info, usage) if here else info

    # ------------------------------------------------------------ revoke

    async def revoke(self, caller: Caller, name: str) -> None:
        """Refuse the endpoint's key from now on, and close its open tasks as refused.

        Raises NotFound.
        """
        await self.revoke_record(self._context.registry.find_endpoint(caller, name))

    async def revoke_record(self, found: EndpointRecord) -> None:
        """Revoke this endpoint, and close its open tasks. Idempotent."""
        gone = msgspec.structs.replace(found, revoked=True)
        await self._context.record([(f"endpoint:{found.id}", gone)])
        await self._sync(besides=found.id)
        if self._ownership.owns(found.id):  # else the owner closes them, when it reads the record
            await close_open_tasks(self._context, gone)


async def close_open_tasks(context: ServerContext, endpoint: EndpointRecord) -> None:
    """Close all open tasks of a revoked endpoint as refused.

    Durable on return. Idempotent. Raises LogError, DiskFull.
    """
    reason = Failure(
        "oncue.TaskRefused",
        f"its endpoint {endpoint.name!r} was revoked",
        remedy="run it on another endpoint; what an agent had begun may have happened there",
    )
    why, after = encode(reason), -1
    while True:
        await context.barrier((context.registry.tasks_topic(endpoint.id), RESULTS))
        rows = [OpenTask(*row) for row in await context.view.open_tasks(endpoint.id, after, PAGE)]
        if not rows:
            return
        after, at = rows[-1].seq, now_us()
        frames: dict[tuple[Call, int], list[Ended]] = {}
        for row in rows:
            ends = frames.setdefault((row.call, row.accepted_us), [])
            ends.append(end_by_server(row.task, row.attempt, REFUSED, at, why))
        records = [Record(encode((VERSION, call, "", accepted, ends))) for (call, accepted), ends in frames.items()]
        await context.log.append(RESULTS, records)


def _check(request: r.EndpointRequest) -> bytes:
    """Return the public key. Raises Invalid.

    A server cannot start with a wrong key in the registry.
    """
    if not NAME.match(request.name) or len(request.name) > NAME_CHARS:
        raise Invalid(
            f"{request.name!r} is not a name for an endpoint",
            remedy="use letters, digits, dots, dashes, underscores",
        )
    key = request.public_key.encode()
    try:
        curve.raw_key(key)
    except Invalid as e:
        raise Invalid(f"public_key: {e.message}", remedy="oncue endpoint register makes one") from None
    return key


def _info_by_report(e: EndpointRecord, waiting: int, report: Usage | None, why: str) -> r.EndpointInfo:
    """Return an endpoint of another server by its agent's last report in the log."""
    here = report is not None and now_us() - report.at_us < REPORT_US
    info = r.EndpointInfo(
        id=e.id,
        name=e.name,
        owner=e.owner,
        state="connected" if here else "away" if report else "never",
        since_us=report.at_us if report and not here else 0,
        waiting=waiting,
        labels=e.labels,
        why=why,
    )
    if report is None:
        return info
    if here:
        info = _with_usage(info, report)
    return msgspec.structs.replace(
        info,
        workers=report.workers if here else 0,
        busy=report.busy if here else 0,
        queued=report.queued if here else 0,
        host=report.host,
        agent_version=report.agent_version,
        python=report.python,
    )


def _with_usage(info: r.EndpointInfo, usage: Usage | None) -> r.EndpointInfo:
    """Return the endpoint with workers, machine and blocks of its agent's report."""
    if usage is None:
        return info
    info = msgspec.structs.replace(
        info,
        idle=usage.idle,
        starting=usage.starting,
        cores=usage.cores,
        load=usage.load,
        memory_bytes=usage.machine_bytes,
        memory_used_bytes=usage.used_bytes,
    )
    if not usage.scheduler:
        return info
    return msgspec.structs.replace(
        info,
        workers=usage.workers,
        why=info.why or usage.trouble,
        scheduler=usage.scheduler,
        waiting_for=usage.waiting_for,
        node_hours=usage.node_hours,
        blocks=[_block(b) for b in usage.blocks],
        nodes=usage.nodes,
        node_hours_limit=usage.node_hours_limit,
        node_hours_period_s=usage.node_hours_period_s,
        breaker=usage.breaker,
        submits_failed=usage.submits_failed,
    )


def _block(b: BlockReport) -> r.BlockInfo:
    return r.BlockInfo(b.id, b.job, b.state, b.nodes, b.workers, b.busy, b.reason, b.since_us, b.ends_us)


def _place(e: EndpointRecord) -> tuple[str, str]:
    return e.name, e.id


def _given(value: T | None, default: T) -> T:
    return default if value is None else value
