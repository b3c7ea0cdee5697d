"""What only another server can say: it acts for the endpoint, so it is asked, on the caller's behalf.

    caller ──► this server ──the caller's token, Oncue-Handed-On──► the server that acts for the endpoint
                    ◄── its answer; or none in 2 s: then what this server knows by itself

A request is handed on once: a server that gets one so answers by itself, whoever it thinks should have been asked. One
that gave no answer is not asked again for a moment, so that one that hangs does not hold up every request of the others.
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
REST_S = 3.0
LIVE = ("state", "since_us", "workers", "busy", "queued", "host", "agent_version", "python", "why")


# Of the answers, only what is needed: a server of another release may say more.


class PeerTask(msgspec.Struct, frozen=True):
    state: str
    attempt: int
    why: str = ""
    sent: bool = False


class PeerEndpoint(msgspec.Struct, frozen=True):
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
    tasks: list[str]


T = TypeVar("T")


class PeerClient:
    """Each question takes the API of the server to ask, and the caller's Authorization header; where one of them is "",
    nobody is asked."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._paused_until: dict[str, float] = {}  # url -> until when it is not asked

    async def task(self, url: str, mine: r.TaskInfo, bearer: str) -> r.TaskInfo:
        """With what is known there of a task that is open."""
        there = await self._ask(url, bearer, "GET", f"/v1/tasks/{mine.id}", PeerTask)
        if there is None or (there.state, there.attempt) != (mine.state, mine.attempt):
            return mine  # it has read more of the log, or less
        return msgspec.structs.replace(mine, why=there.why, sent=there.sent)

    async def endpoint(self, url: str, mine: r.EndpointInfo, bearer: str) -> r.EndpointInfo:
        there = await self._ask(url, bearer, "GET", f"/v1/endpoints/{mine.id}", PeerEndpoint)
        if there is None:
            return mine
        return msgspec.structs.replace(mine, **{name: getattr(there, name) for name in LIVE})

    async def cancel_waiting(self, url: str, ids: Sequence[bytes], bearer: str) -> list[bytes]:
        """Those that will not run. Of one whose answer comes too late it is not known: it may end as cancelled."""
        request = r.CancelRequest(tasks=[i.hex() for i in ids], waiting=True)
        there = await self._ask(url, bearer, "POST", "/v1/tasks/cancel", PeerCancelled, request)
        told = set(there.tasks) if there is not None else set()
        return [i for i in ids if i.hex() in told]

    async def rules(self, url: str, bearer: str) -> list[r.RuleInfo]:
        """With what that server has counted."""
        return await self._ask(url, bearer, "GET", "/v1/rules", list[r.RuleInfo]) or []

    async def triggers(self, url: str, bearer: str) -> list[r.TriggerInfo]:
        """All that there are, as that server sees them."""
        return await self._ask(url, bearer, "GET", "/v1/triggers", list[r.TriggerInfo]) or []

    async def trigger(self, url: str, name: str, bearer: str) -> r.TriggerShown | None:
        return await self._ask(url, bearer, "GET", f"/v1/triggers/{quote(name, safe='')}", r.TriggerShown)

    async def trigger_file(self, url: str, name: str, path: str, bearer: str) -> r.TriggerFile | None:
        there = f"/v1/triggers/{quote(name, safe='')}/file?path={quote(path, safe='')}"
        return await self._ask(url, bearer, "GET", there, r.TriggerFile)

    async def _ask(self, url: str, bearer: str, method: str, path: str, kind: type[T], body: Any = None) -> T | None:
        if not url or not bearer or self._paused_until.get(url, 0.0) > time.monotonic():
            return None
        headers = {"Authorization": bearer, FORWARDED: "1"}
        data = None
        if body is not None:
            data, headers["Content-Type"] = msgspec.json.encode(body), "application/json"
        if self._session is None:
            limits = aiohttp.ClientTimeout(total=ANSWER_S, sock_connect=CONNECT_S)
            self._session = aiohttp.ClientSession(timeout=limits, cookie_jar=aiohttp.DummyCookieJar())
        try:
            # A token goes to the address that the server has claimed, and nowhere else.
            async with self._session.request(
                method, url + path, data=data, headers=headers, allow_redirects=False
            ) as answer:
                if answer.status not in (200, 202):  # it is there, but does not know of the token yet, say
                    log.info("%s of the server %s was answered with %d", path, url, answer.status)
                    return None
                return msgspec.json.decode(await answer.read(), type=kind)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError, msgspec.MsgspecError) as e:
            self._paused_until[url] = time.monotonic() + REST_S
            log.warning("the server %s acts for what was asked, and gave no answer: %s", url, e or type(e).__name__)
            return None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
