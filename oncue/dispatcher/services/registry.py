"""Functions, endpoints, tokens and blobs: what is registered, and by whom."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets as random_secrets
from collections.abc import AsyncIterator
from typing import TypeVar

import msgspec

from oncue import curve, functions
from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.auth.tokens import check_token_request, new_token
from oncue.dispatcher.bridge.effect_runner import EffectRunner
from oncue.dispatcher.bridge.effects import ChannelPhase
from oncue.dispatcher.context import ServerContext
from oncue.dispatcher.services.revoked import end_all
from oncue.errors import Conflict, Invalid, NotFound, TooLarge, Undecodable
from oncue.ids import now_us
from oncue.log import Topic
from oncue.protocol import api as r
from oncue.protocol.records import (
    FUNCTION_BYTES,
    INLINE_BYTES,
    NAME_CHARS,
    VERSION,
    EndpointRecord,
    FunctionRecord,
    Parameter,
    TokenRecord,
    Usage,
)

T = TypeVar("T")
REPORT_US = 15_000_000  # agents report every 5 s: one that has not for so long is away
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


class RegistryDesk(ServerContext):
    server_key: str  # CURVE public key, Z85
    carrier: EffectRunner

    # ------------------------------------------------------------ functions

    async def register_function(self, who: Caller, request: r.FunctionRequest) -> r.FunctionInfo:
        self.accepting()
        if len(request.body) > FUNCTION_BYTES:
            raise TooLarge(
                f"the function has {len(request.body):,} bytes; at most {FUNCTION_BYTES:,} are taken",
                remedy="pass large data as an argument, or read it where the function runs",
            )
        if not request.name or len(request.name) > NAME_CHARS:
            raise Invalid(f"a function's name has 1 to {NAME_CHARS} characters", remedy="give it a shorter name")
        try:
            facts = functions.describe(request.body)
        except Undecodable as e:
            raise Invalid(
                f"the function's body cannot be read: {e.message} - at `$.body`",
                remedy="send what oncue.functions.pack_function makes: `oncue functions register FILE.py:NAME`",
            ) from None
        sha = hashlib.sha256(request.body).hexdigest()
        known = await self.view.function(sha, owner=who.subject)
        if known is None or known.name != request.name or known.owner != who.subject:
            inline = request.body
            if len(request.body) > INLINE_BYTES:
                await asyncio.to_thread(self.blobs.put, request.body)
                inline = b""
            newest = await self.view.function(request.name, owner=who.subject)
            record = FunctionRecord(
                VERSION,
                sha,
                request.name,
                who.subject,
                facts.python,
                len(request.body),
                inline,
                request.signature[:1_000],
                request.doc[:4_000],
                request.file[:1_000],
                newest.version + 1 if newest else 1,
                now_us(),
                _parameters(request),
            )
            await self.record([(f"function:{who.subject}:{request.name}:{sha}", record)])
        return await self.function(who, sha)

    async def functions(self, who: Caller, cursor: str, limit: int) -> r.Page:
        rows, following = await self.view.functions(cursor, limit, who.only)
        return r.Page(items=[_function_info(f) for f in rows], next=following)

    async def function(self, who: Caller, name: str) -> r.FunctionInfo:
        found = await self.view.function(name, owner=who.subject)
        if found is None:
            raise NotFound(f"there is no function {name!r}", remedy="oncue functions list shows what there is")
        body = found.body
        if not body and found.size_bytes <= FUNCTION_BYTES:
            body = await asyncio.to_thread(self.blobs.part, found.id, 0, found.size_bytes)
        return _function_info(found, functions.describe(body).source)

    # ------------------------------------------------------------ endpoints

    async def register_endpoint(self, who: Caller, request: r.EndpointRequest) -> r.Registered:
        """Again with the same key is harmless. A name has one endpoint: another key for it is a conflict."""
        self.accepting()
        if not NAME.match(request.name) or len(request.name) > NAME_CHARS:
            raise Invalid(
                f"{request.name!r} is not a name for an endpoint",
                remedy="use letters, digits, dots, dashes, underscores",
            )
        if self.log.shared:
            await self.registry_caught_up()
        key = request.public_key.encode()
        try:
            curve.raw_key(key)
        except Invalid as e:  # before it is recorded: a server could not start with it
            raise Invalid(f"public_key: {e.message}", remedy="oncue endpoint register makes one") from None
        known_id = self._endpoint_names.get((who.subject, request.name))
        known = self._endpoints.get(known_id or "")
        if known is not None and known.public_key != key:
            raise Conflict(
                f"there is an endpoint {request.name!r} with another key",
                remedy=f"use another name, or revoke the old one: oncue endpoints revoke {request.name}",
            )
        other = next((e for e in self._endpoints.values() if e.public_key == key and e.id != known_id), None)
        if other is not None and other.revoked and other.owner == who.subject:
            raise Conflict(
                f"this key was revoked, with the endpoint {other.name!r}",
                remedy=f"a revoked key stays refused; register with a new one: oncue endpoint register {request.name}",
                revoked_key=True,
                endpoint=other.id,
            )
        if other is not None:
            raise Conflict("this key belongs to another endpoint", remedy="make a new key: remove the agent's folder")
        record = EndpointRecord(
            VERSION,
            known.id if known else "ep_" + random_secrets.token_hex(8),
            request.name,
            who.subject,
            key,
            known.at_us if known else now_us(),
            False,
            _assigned(request.lost_after_ms, known.lost_after_ms if known else 0),
            _assigned(request.labels, known.labels if known else {}),
        )
        if record != known:
            await self.log.ensure({self.tasks_topic(record.id): Topic()})
            (position,) = await self.record_at([(f"endpoint:{record.id}", record)])
            if known is None and self.log.shared:
                await self._first_of_its_name(record, position.first)
        self.owners.sync_endpoints()
        s = self.settings
        return r.Registered(
            id=record.id,
            name=record.name,
            server_key=self.server_key,
            bridge=curve.address(s.advertise_host or s.bridge_host or s.host, self.bridge.port),
        )

    async def _first_of_its_name(self, mine: EndpointRecord, offset: int) -> None:
        """Two servers may have registered one name at once: all see the same one first, and that one stays."""
        for place, other in await self.view.endpoint_places(mine.name):
            if place < offset and other.owner == mine.owner and other.id != mine.id and not other.revoked:
                await self.record([(f"endpoint:{mine.id}", msgspec.structs.replace(mine, revoked=True))])
                raise Conflict(
                    f"there is an endpoint {mine.name!r} with another key, registered through another server just now",
                    remedy=f"use another name, or revoke the other one: oncue endpoints revoke {mine.name}",
                )

    async def endpoints(self, who: Caller) -> list[r.EndpointInfo]:
        counts, reports = await self.view.open_counts(), await self._reports()
        mine = [e for e in self._endpoints.values() if who.sees(e.owner)]
        return [
            self._endpoint_info(e, counts.get(e.id, 0), reports.get(e.id)) for e in sorted(mine, key=lambda e: e.name)
        ]

    async def endpoint(self, who: Caller, name: str, bearer: str = "") -> r.EndpointInfo:
        found = self.find_endpoint(who, name)
        counts, reports = await self.view.open_counts(), await self._reports()
        info = self._endpoint_info(found, counts.get(found.id, 0), reports.get(found.id))
        return info if found.revoked else await self.across.endpoint(self.owners.owner_url(found.id), info, bearer)

    async def _reports(self) -> dict[str, Usage]:
        """What the agents of endpoints for which other servers act said last."""
        return await self.view.usage() if self.log.shared else {}

    def _endpoint_info(self, e: EndpointRecord, waiting: int, report: Usage | None) -> r.EndpointInfo:
        channel = self.bridge.channels.get(e.id)
        if channel is None and not e.revoked:
            place = self.owners.owner_label(e.id)
            why = f"the server {place} acts for it" if place else "no server acts for it yet"
            return self._info_by_report(e, waiting, report, why)
        if channel is not None and channel.hello is None and report is not None and not e.revoked:
            why = (
                self.carrier.phase_reasons.get(e.id)
                or "its agent has not come to this server yet, which acts for it now"
            )
            return self._info_by_report(e, waiting, report, why)
        usage = self.carrier.usage.get(e.id)
        state, since, hello = "revoked", 0, None
        if channel is not None and not e.revoked:
            state, since, hello = channel.phase.value, channel.since_us, channel.hello
            if channel.phase is ChannelPhase.AWAY and hello is None:
                state = "never"
        here = state == "connected"
        return r.EndpointInfo(
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
            why=self.carrier.phase_reasons.get(e.id, ""),
            lost_after_ms=e.lost_after_ms,
        )

    @staticmethod
    def _info_by_report(e: EndpointRecord, waiting: int, report: Usage | None, why: str) -> r.EndpointInfo:
        """Of an endpoint whose agent is not at this server: by what it reported through the log, by way of another."""
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
        return msgspec.structs.replace(
            info,
            workers=report.workers if here else 0,
            busy=report.busy if here else 0,
            queued=report.queued if here else 0,
            host=report.host,
            agent_version=report.agent_version,
            python=report.python,
        )

    async def revoke_endpoint(self, who: Caller, name: str) -> None:
        found = self.find_endpoint(who, name)
        gone = msgspec.structs.replace(found, revoked=True)
        await self.record([(f"endpoint:{found.id}", gone)])
        self.owners.sync_endpoints()
        if self.owners.owns(found.id):  # else its owner ends them, when it has read of it
            await end_all(self, gone)

    # ------------------------------------------------------------ tokens

    async def make_token(self, who: Caller, request: r.TokenRequest) -> r.TokenInfo:
        """The token itself is in this answer and nowhere else."""
        check_token_request(who, request)
        token, hashed = new_token()
        expires = now_us() + request.expires_s * 1_000_000 if request.expires_s else 0
        record = TokenRecord(
            VERSION,
            "tok_" + random_secrets.token_hex(6),
            hashed,
            request.subject or who.subject,
            tuple(request.scopes),
            expires,
            False,
            now_us(),
            request.name[:NAME_CHARS],
        )
        await self.record([(f"token:{record.id}", record)])
        return msgspec.structs.replace(_token_info(record), token=token)

    async def tokens(self, who: Caller) -> list[r.TokenInfo]:
        mine = [t for t in self._tokens.values() if who.sees(t.subject)]
        return [_token_info(t) for t in sorted(mine, key=lambda t: t.at_us)]

    async def revoke_token(self, who: Caller, token_id: str) -> None:
        found = next((t for t in self._tokens.values() if t.id == token_id), None)
        if found is None or not who.sees(found.subject):
            raise NotFound(f"there is no token {token_id!r}", remedy="oncue tokens list shows yours")
        await self.record([(f"token:{found.id}", msgspec.structs.replace(found, revoked=True))])

    # ------------------------------------------------------------ blobs

    async def put_blob(self, who: Caller, sha256: str, size: int, parts: AsyncIterator[bytes]) -> None:
        """Durable when this returns. Raises Invalid when the content does not have that hash."""
        self.accepting()
        if await asyncio.to_thread(self.blobs.has, sha256):
            async for _ in parts:
                pass
            return
        upload = self.blobs.upload(sha256, size)
        try:
            at = 0
            async for part in parts:
                at = await asyncio.to_thread(upload.write, at, part)
            await asyncio.to_thread(upload.finish)
        except BaseException:
            upload.abort()
            raise

    async def get_blob(self, who: Caller, sha256: str) -> tuple[int, AsyncIterator[bytes]]:
        """Whoever knows the hash of a blob may have it: the hash is of its content."""
        size = await asyncio.to_thread(self.blobs.size, sha256)
        return size, self._blob_parts(sha256, size)

    async def _blob_parts(self, sha256: str, size: int) -> AsyncIterator[bytes]:
        at = 0
        while at < size:
            part = await asyncio.to_thread(self.blobs.part, sha256, at, 1 << 20)
            at += len(part)
            yield part


def _assigned(value: T | None, stays: T) -> T:
    return stays if value is None else value


def _function_info(f: FunctionRecord, source: str = "") -> r.FunctionInfo:
    return r.FunctionInfo(
        id=f.id,
        name=f.name,
        version=f.version,
        owner=f.owner,
        python=f.python,
        size_bytes=f.size_bytes,
        signature=f.signature,
        doc=f.doc,
        file=f.file,
        at_us=f.at_us,
        source=source,
        parameters=r.parameter_infos(f.parameters),
    )


def _parameters(request: r.FunctionRequest) -> tuple[Parameter, ...] | None:
    if request.parameters is None:
        return None
    return tuple(Parameter(p.name[:NAME_CHARS], p.kind, p.required) for p in request.parameters)


def _token_info(t: TokenRecord) -> r.TokenInfo:
    return r.TokenInfo(
        id=t.id, name=t.name, subject=t.subject, scopes=list(t.scopes), expires_us=t.expires_us, revoked=t.revoked
    )
