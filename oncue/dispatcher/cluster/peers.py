"""HTTP client for peer servers.

    caller ──► this server ──caller's token, Oncue-Handed-On──► the server that owns the endpoint
                    ◄── its answer; without one in 2 s, this server answers from its own view

Requests that only an endpoint's owner can answer are forwarded to it with the caller's token, once:
a server never forwards a forwarded request. After a failure a peer is not asked for a moment, so
that a server that hangs does not delay each request.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec

from oncue.protocol import api as r

log = logging.getLogger("oncue.across")
FORWARDED = "Oncue-Handed-On"
ANSWER_S, CONNECT_S = 2.0, 1.0
BACKFILL_S = 55.0  # longest wait for a backfill; clients wait 60 s for an answer
PAUSE_S = 3.0  # after a failure
LIVE = ("state", "since_us", "workers", "busy", "queued", "host", "agent_version", "python", "why")


# These Structs have only the fields that are needed, because a server of another release may send
# more.


class PeerTask(msgspec.Struct, frozen=True):
    """A task, as its endpoint's owner knows it."""

    state: str
    attempt: int
    why: str = ""
    sent: bool = False


class PeerEndpoint(msgspec.Struct, frozen=True):
    """An endpoint, as its owner knows it."""

    state: str
    since_us: int = 0
    workers: int = 0
    busy: int = 0
    queued: int = 0
    host: str = ""
    agent_version: str = ""
    python: str = ""
    why: str = ""


class PeerCancelled(msgspec.Struct, frozen=True):
    """Tasks that an endpoint's owner has cancelled."""

    tasks: list[str]


T = TypeVar("T")


class PeerClient:
    """Forwards requests to peer servers.

    Each method takes the peer's URL and the caller's Authorization header. If one of them is "", no
    request is sent.
    """

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._paused_until: dict[str, float] = {}  # url -> when it may be asked again (monotonic)

    async def task(self, url: str, own: r.TaskInfo, bearer: str) -> r.TaskInfo:
        """Return an open task, with the fields that only its owner knows."""
        peer = await self._request(url, bearer, "GET", f"/v1/tasks/{own.id}", PeerTask)
        if peer is None or (peer.state, peer.attempt) != (own.state, own.attempt):
            return own  # the peer has read more of the log, or less
        return msgspec.structs.replace(own, why=peer.why, sent=peer.sent)

    async def endpoint(self, url: str, own: r.EndpointInfo, bearer: str) -> r.EndpointInfo:
        """Return an endpoint, with the fields that only its owner knows."""
        peer = await self._request(url, bearer, "GET", f"/v1/endpoints/{own.id}", PeerEndpoint)
        if peer is None:
            return own
        return msgspec.structs.replace(own, **{name: getattr(peer, name) for name in LIVE})

    async def cancel_waiting(self, url: str, ids: Sequence[bytes], bearer: str) -> list[bytes]:
        """Cancel waiting tasks, and return those that will not run.

        After a timeout the others may still end as cancelled.
        """
        request = r.CancelRequest(tasks=[i.hex() for i in ids], waiting=True)
        answer = await self._request(url, bearer, "POST", "/v1/tasks/cancel", PeerCancelled, request)
        cancelled = set(answer.tasks) if answer is not None else set()
        return [i for i in ids if i.hex() in cancelled]

    async def rules(self, url: str, bearer: str) -> list[r.RuleInfo]:
        """Return the rules, with the peer's counters."""
        return await self._request(url, bearer, "GET", "/v1/rules", list[r.RuleInfo]) or []

    async def triggers(self, url: str, bearer: str) -> list[r.TriggerInfo]:
        """Return all triggers, with the states that the peer knows."""
        return await self._request(url, bearer, "GET", "/v1/triggers", list[r.TriggerInfo]) or []

    async def trigger(self, url: str, name: str, bearer: str) -> r.TriggerShown | None:
        """Return a trigger that the peer runs."""
        return await self._request(url, bearer, "GET", f"/v1/triggers/{quote(name, safe='')}", r.TriggerShown)

    async def trigger_file(self, url: str, name: str, path: str, bearer: str) -> r.TriggerFile | None:
        """Return what a trigger of the peer did with a file."""
        target = f"/v1/triggers/{quote(name, safe='')}/file?path={quote(path, safe='')}"
        return await self._request(url, bearer, "GET", target, r.TriggerFile, patient_s=ANSWER_S)

    async def backfill(self, url: str, name: str, request: r.BackfillRequest, bearer: str) -> r.Backfilled | None:
        """Let old files fire of a trigger that the peer runs."""
        target = f"/v1/triggers/{quote(name, safe='')}/backfill"
        return await self._request(url, bearer, "POST", target, r.Backfilled, request, patient_s=BACKFILL_S)

    async def _request(
        self, url: str, bearer: str, method: str, path: str, kind: type[T], body: Any = None, patient_s: float = 0.0
    ) -> T | None:
        """Return the peer's answer, or None.

        `patient_s`: longest wait where the answer takes as long as a user's folder does. If it
        takes longer, others ask the peer as before.
        """
        if not url or not bearer or self._paused_until.get(url, 0.0) > time.monotonic():
            return None
        headers = {"Authorization": bearer, FORWARDED: "1"}
        data = None
        if body is not None:
            data, headers["Content-Type"] = msgspec.json.encode(body), "application/json"
        if self._session is None:
            self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        try:
            # No redirects: the caller's token goes only to the address that the peer has claimed.
            async with self._session.request(
                method,
                url + path,
                data=data,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=patient_s or ANSWER_S, sock_connect=CONNECT_S),
            ) as answer:
                # The server runs, but may not have read the token's record yet.
                if answer.status not in (200, 202):
                    log.info("%s of the server %s was answered with %d", path, url, answer.status)
                    return None
                return msgspec.json.decode(await answer.read(), type=kind)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError, msgspec.MsgspecError) as e:
            if not (patient_s and type(e) is TimeoutError):
                self._paused_until[url] = time.monotonic() + PAUSE_S
            log.warning("the server %s, which owns what was requested, gave no answer: %s", url, e or type(e).__name__)
            return None

    async def close(self) -> None:
        """Close connections."""
        if self._session is not None:
            await self._session.close()
