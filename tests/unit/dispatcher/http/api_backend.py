"""A Backend in memory and a real server on a free port, for HTTP tests.

Tests of the real backend are elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgspec

from oncue import ids
from oncue.config import Settings
from oncue.dispatcher.auth.base import AuthenticatorFactory
from oncue.dispatcher.auth.catalog import AUTHENTICATORS
from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.auth.tokens import check_token_request, hash_token
from oncue.dispatcher.http.app import HttpServer, make_app, serve
from oncue.dispatcher.http.streams import Streams
from oncue.dispatcher.metrics.metrics import Metrics
from oncue.dispatcher.services.history.reports import ReportFilter
from oncue.errors import BlobMissing, Conflict, Invalid, NotFound
from oncue.protocol import api as r
from oncue.protocol import payload
from oncue.protocol.api import Outcome
from oncue.protocol.records import OK, Ended, Event, TokenRecord
from oncue.view import EventFilter, TaskFilter

TOKENS = {name: f"oncue_{name}-token" for name in ("admin", "user", "emit", "read")}


# service of the Backend -> its methods, and which method of MemoryBackend answers
SERVICES = {
    "blobs": {"put": "_put_blob", "get": "_get_blob", "missing": "_missing_blobs"},
    "dead_letters": {"page": "_dead", "get": "_dead_letter", "retry": "_retry_dead", "dismiss": "_dismiss_dead"},
    "events": {"emit": "_emit", "page": "_events", "count": "_count_events", "get": "_event", "live": "_live"},
    "triggers": {
        "all": "_triggers",
        "get": "_trigger",
        "explain": "_explain_file",
        "backfill": "_backfill",
        "receive": "_receive",
        "handshake": "_handshake",
    },
    "traces": {"of_event": "_trace_of_event", "of_task": "_trace_of_task"},
    "reports": {"page": "_report"},
    "replays": {"page": "_replay"},
    "simulations": {"page": "_simulate"},
    "functions": {"register": "_register_function", "page": "_functions", "get": "_function"},
    "endpoints": {
        "register": "_register_endpoint",
        "all": "_endpoints",
        "get": "_endpoint",
        "revoke": "_revoke_endpoint",
    },
    "tokens": {
        "create": "_make_token",
        "all": "_tokens",
        "revoke": "_revoke_token",
        "find": "_token",
        "by_id": "_token_by_id",
    },
    "deployments": {
        "deploy": "_deploy",
        "history": "_rule_history",
        "rollback": "_rollback",
        "remove": "_remove_rules",
    },
    "rules": {
        "all": "_rules",
        "get": "_rule",
        "switch": "_switch_rule",
        "explain": "_explain",
        "explain_outcome": "_explain_outcome",
    },
    "status": {"health": "_health", "collect": "_collect", "rules_of": "_rules_of"},
    "tasks": {
        "submit": "_submit",
        "submit_batch": "_submit_batch",
        "get": "_task",
        "timeline": "_timeline",
        "logs": "_logs",
        "outcomes": "_outcomes",
        "stream": "_stream",
    },
    "cancellation": {"cancel": "_cancel"},
    "task_lists": {"page": "_tasks", "find": "_find", "count": "_count", "cancel_page": "_cancel_page"},
    "retries": {"retry": "_retry", "retry_one": "_retry_one"},
    "view_snapshots": {"create": "_view_snapshot"},
}


class MemoryBackend:
    server_id = "memory"

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.records = {
            hash_token(token): TokenRecord(1, name, hash_token(token), "ada", (name,)) for name, token in TOKENS.items()
        }
        self.task_infos: dict[str, r.TaskInfo] = {}
        self.batches: list[r.BatchRequest] = []
        self.ended: dict[bytes, Outcome] = {}
        self.emitted: list[Event] = []
        self.stored_blobs: dict[str, bytes] = {}
        self.waited: list[str] = []
        self.feeds: list[asyncio.Queue[Any]] = []
        self.subscribed = asyncio.Event()
        self.finished_streams = 0
        self.queries: list[TaskFilter] = []
        self.switched: list[tuple[str, bool, str]] = []
        self.explained: list[tuple[Event | None, int | None]] = []
        self.health_status = "ok"
        self.fail: BaseException | None = None  # raised by `triggers`
        self.short_blob = False
        for service, methods in SERVICES.items():
            setattr(self, service, SimpleNamespace(**{name: getattr(self, own) for name, own in methods.items()}))

    # tasks

    async def _submit(self, caller: Caller, request: r.TaskRequest) -> r.TaskInfo:
        if request.function == "missing":
            raise NotFound("there is no function 'missing'", remedy="register it")
        seed = bytes.fromhex(hashlib.md5(request.key.encode()).hexdigest()) if request.key else ids.new_uuid7()
        text = ids.text(ids.batch_ids(caller.subject, seed, 1)[0])
        info = r.TaskInfo(
            id=text,
            state="waiting",
            function=request.function,
            name="f",
            endpoint=request.endpoint,
            owner=caller.subject,
            arguments=[request.args, request.kwargs],
            position="tasks:7",
        )
        return self.task_infos.setdefault(text, info)

    async def _submit_batch(self, caller: Caller, request: r.BatchRequest) -> r.Accepted:
        if request.retry is not None:
            try:
                request.retry.stored()
            except msgspec.ValidationError as e:
                raise Invalid(str(e), remedy="mend it") from None
        self.batches.append(request)
        count = len(request.payloads) + len(request.calls)
        key = ids.parse(request.key) if request.key else ids.new_uuid7()
        return r.Accepted(first=ids.text(ids.batch_ids(caller.subject, key, count)[0]), count=count, position="tasks:9")

    async def _task(self, caller: Caller, task_id: str, wait_ms: int = 0, bearer: str = "") -> r.TaskInfo:
        if wait_ms:
            self.subscribed.set()
            await asyncio.sleep(wait_ms / 1000)
        if task_id not in self.task_infos:
            raise NotFound(f"there is no task {task_id}", remedy="oncue tasks lists yours")
        return self.task_infos[task_id]

    async def _tasks(self, caller: Caller, query: TaskFilter) -> r.Page:
        if query.cursor not in ("", "c1"):
            raise Invalid(f"{query.cursor!r} is not a cursor", remedy="give back `next` of the page before")
        self.queries.append(query)
        return r.Page(items=list(self.task_infos.values())[: query.limit], next="c1")

    async def _timeline(self, caller: Caller, task_id: str) -> list[r.TimelineEntry]:
        return [r.TimelineEntry(at_us=1, what="accepted")]

    async def _outcomes(self, caller: Caller, wanted: Sequence[bytes], wait_ms: int = 0) -> list[Outcome]:
        return [self.ended[i] for i in wanted if i in self.ended]

    async def _stream(self, caller: Caller, stream: str) -> AsyncIterator[bytes]:
        async for item in self._feed():
            yield item

    async def _feed(self) -> AsyncIterator[Any]:
        feed: asyncio.Queue[Any] = asyncio.Queue()
        self.feeds.append(feed)
        self.subscribed.set()
        try:
            while True:
                item = await feed.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    return
                yield item
        finally:
            self.feeds.remove(feed)
            self.finished_streams += 1

    async def _cancel(self, caller: Caller, request: r.CancelRequest, bearer: str = "") -> list[str]:
        return request.tasks

    async def _find(self, caller: Caller, text: str, limit: int) -> r.Page:
        return r.Page(items=[t for t in self.task_infos.values() if t.id.startswith(text)][:limit])

    async def _count(self, caller: Caller, query: TaskFilter) -> r.TaskCount:
        self.queries.append(query)
        return r.TaskCount(count=len(self.task_infos))

    async def _cancel_page(self, caller: Caller, request: r.CancelRequest, bearer: str) -> tuple[list[str], str | None]:
        return list(self.task_infos), None

    async def _retry(self, caller: Caller, request: r.RetryRequest) -> r.Retried:
        return r.Retried(tasks=[r.RetriedTask(retry_of=task) for task in request.tasks or self.task_infos])

    async def _retry_one(self, caller: Caller, task_id: str, request: r.RetryOneRequest) -> r.TaskInfo:
        info = await self._task(caller, task_id)
        if info.state == "waiting":
            raise Conflict(f"the task {task_id} is still open", remedy="wait for it, or cancel it")
        return info

    async def _logs(self, caller: Caller, task_id: str, follow: bool) -> AsyncIterator[bytes]:
        if task_id not in self.task_infos:
            raise NotFound(f"there is no task {task_id}", remedy="oncue tasks lists yours")
        yield b"one\n"
        yield b""
        yield b"two\n"
        if follow:
            async for item in self._feed():
                yield item

    # blobs

    async def _put_blob(self, caller: Caller, sha256: str, size: int, parts: AsyncIterator[bytes]) -> None:
        content = b"".join([part async for part in parts])
        if hashlib.sha256(content).hexdigest() != sha256:
            raise Invalid("the content has another hash", remedy="send it again")
        self.stored_blobs[sha256] = content

    async def _missing_blobs(self, wanted: Sequence[str]) -> list[str]:
        return [sha256 for sha256 in wanted if sha256 not in self.stored_blobs]

    async def _get_blob(self, caller: Caller, sha256: str) -> tuple[int, AsyncIterator[bytes]]:
        content = self.stored_blobs.get(sha256)
        if content is None:
            raise BlobMissing("the blob is not here", remedy="run the task again")

        async def parts() -> AsyncIterator[bytes]:
            for at in range(0, len(content) // (2 if self.short_blob else 1), 1 << 16):
                yield content[at : at + (1 << 16)]

        return len(content), parts()

    async def _view_snapshot(self, caller: Caller) -> tuple[int, AsyncIterator[bytes]]:
        async def parts() -> AsyncIterator[bytes]:
            yield b"SQLite format 3"

        return 15, parts()

    # functions, endpoints

    async def _register_function(self, caller: Caller, request: r.FunctionRequest) -> r.FunctionInfo:
        return self._function_info(request.name, len(request.body))

    async def _functions(self, caller: Caller, cursor: str, limit: int) -> r.Page:
        return r.Page(items=[self._function_info("f", 1)])

    async def _function(self, caller: Caller, name: str) -> r.FunctionInfo:
        return self._function_info(name, 1)

    def _function_info(self, name: str, size: int) -> r.FunctionInfo:
        return r.FunctionInfo(id="ab" * 32, name=name, version=1, owner="ada", python="3.11", size_bytes=size)

    async def _register_endpoint(self, caller: Caller, request: r.EndpointRequest) -> r.Registered:
        return r.Registered(id="e1", name=request.name, server_key="k" * 40, bridge="tcp://127.0.0.1:1")

    async def _endpoints(self, caller: Caller, after: str = "", limit: int = 0) -> list[r.EndpointInfo]:
        return [await self._endpoint(caller, "laptop")]

    async def _endpoint(self, caller: Caller, name: str, bearer: str = "") -> r.EndpointInfo:
        return r.EndpointInfo(id="e1", name=name, owner="ada", state="connected")

    async def _revoke_endpoint(self, caller: Caller, name: str) -> None:
        return None

    # rules

    async def _deploy(self, caller: Caller, request: r.DeployRequest, bearer: str = "") -> list[r.Deployed]:
        return [r.Deployed(label=f.label, version=1, changed=True) for f in request.files]

    async def _rules(self, caller: Caller, bearer: str = "") -> list[r.RuleInfo]:
        return [await self._rule(caller, "reconstruct")]

    async def _rule(self, caller: Caller, name: str, bearer: str = "") -> r.RuleInfo:
        return r.RuleInfo(name=name, label="b", version=1, enabled=True, on="detector", runs=["f"], endpoint="local")

    async def _switch_rule(self, caller: Caller, name: str, enabled: bool, why: str) -> r.RuleInfo:
        self.switched.append((name, enabled, why))
        return await self._rule(caller, name)

    async def _rule_history(self, caller: Caller, label: str) -> list[dict[str, Any]]:
        return [{"label": label, "version": 2, "owner": "ada"}]

    async def _rollback(
        self, caller: Caller, label: str, version: int, dry_run: bool = False, bearer: str = ""
    ) -> r.Deployed:
        return r.Deployed(label=label, version=version + 1, changed=True)

    async def _remove_rules(self, caller: Caller, label: str) -> r.Deployed:
        return r.Deployed(label=label, version=3, changed=True)

    async def _explain(self, caller: Caller, name: str, event: Event | None, offset: int | None) -> r.Explanation:
        self.explained.append((event, offset))
        return r.Explanation(rule=name, event=event.id if event else str(offset), fires=True, why="all holds")

    async def _explain_outcome(self, caller: Caller, name: str, task: str) -> r.Explanation:
        return r.Explanation(rule=name, event=task, fires=True, why="all holds")

    async def _trace_of_event(self, caller: Caller, offset: int) -> r.Trace:
        return r.Trace(source="/s", id=str(offset), tasks=[r.TracedTaskInfo(id="0" * 32, rule="r")])

    async def _trace_of_task(self, caller: Caller, task: str) -> r.Trace:
        return r.Trace(source="/s", id="e", tasks=[r.TracedTaskInfo(id=task, rule="r")])

    async def _report(self, caller: Caller, filters: ReportFilter) -> r.Page:
        return r.Page(items=[r.ReportItem(offset=1, source="/s", id="e", type="t", at_us=1)])

    async def _simulate(self, caller: Caller, label: str, request: r.SimulateRequest) -> r.SimulationPage:
        return r.SimulationPage(events=1)

    async def _replay(self, caller: Caller, rule: str, request: r.ReplayRequest) -> r.ReplayPage:
        return r.ReplayPage(events=1)

    async def _triggers(self, caller: Caller, bearer: str = "") -> list[r.TriggerInfo]:
        if self.fail is not None:
            raise self.fail
        return [r.TriggerInfo(name="detector", kind="file", label="b", state="running")]

    async def _trigger(self, caller: Caller, name: str, bearer: str = "") -> r.TriggerShown:
        seen = [r.TriggerDecision(path="a.h5", fired=True, why="close_write", at_us=1)]
        return r.TriggerShown(name=name, kind="file", label="b", state="running", decisions=seen)

    async def _explain_file(self, caller: Caller, name: str, path: str, bearer: str = "") -> r.TriggerFile:
        return r.TriggerFile(path=path, state="fired", why="it fired", at_us=1)

    async def _backfill(self, caller: Caller, name: str, request: r.BackfillRequest, bearer: str = "") -> r.Backfilled:
        return r.Backfilled(trigger=name, dry_run=request.dry_run, files=0)

    async def sync_registry(self) -> bool:
        return False

    async def _handshake(self, trigger: str, headers: Mapping[str, str]) -> tuple[int, dict[str, str], bytes]:
        return 200, {"allow": "OPTIONS, POST"}, b""

    async def _receive(
        self, trigger: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        if trigger != "daq":
            raise NotFound(f"there is no webhook {trigger!r}", remedy="deploy a rule file that has it")
        assert all(name == name.lower() for name in headers)
        return 202, {"X-Seen": headers.get("x-sign", "")}, body[::-1]

    # events

    async def _emit(self, caller: Caller, events: Sequence[Event]) -> r.Emitted:
        self.emitted.extend(events)
        return r.Emitted(count=len(events), position="events:3")

    async def _events(self, caller: Caller, query: EventFilter) -> r.Page:
        return r.Page(items=[await self._event(caller, 0)])

    async def _count_events(self, caller: Caller, query: EventFilter) -> r.EventCount:
        return r.EventCount(count=1)

    async def _event(self, caller: Caller, offset: int) -> r.EventInfo:
        return r.EventInfo(offset=offset, event={"id": "1"}, at_us=1)

    async def _dead(self, caller: Caller, cursor: str, limit: int, settled: bool = False) -> r.Page:
        return r.Page(items=[await self._dead_letter(caller, 1 + settled)])

    async def _dead_letter(self, caller: Caller, letter: int) -> r.DeadInfo:
        return r.DeadInfo(id=letter, stage="args", reason="no", at_us=1)

    async def _dismiss_dead(self, caller: Caller, request: r.DismissRequest) -> r.Dismissed:
        return r.Dismissed(count=len(request.letters), position="dead:5")

    async def _retry_dead(self, caller: Caller, letter: int) -> None:
        return None

    async def _live(self, caller: Caller, kinds: frozenset[str]) -> AsyncIterator[tuple[str, Any]]:
        async for item in self._feed():
            yield item

    # people and server

    def _token_by_id(self, token_id: str) -> TokenRecord | None:
        return None

    def _token(self, hash_hex: str) -> TokenRecord | None:
        return self.records.get(hash_hex)

    async def _make_token(self, caller: Caller, request: r.TokenRequest) -> r.TokenInfo:
        check_token_request(caller, request)
        return r.TokenInfo(id="t", name=request.name, subject=caller.subject, scopes=request.scopes, token="oncue_x")

    async def _tokens(self, caller: Caller) -> list[r.TokenInfo]:
        return [r.TokenInfo(id="t", name="n", subject="ada", scopes=["user"])]

    async def _revoke_token(self, caller: Caller, token_id: str, endpoints: bool = False) -> r.RevokedToken:
        gone = r.TokenInfo(id=token_id, name="n", subject="ada", scopes=["user"], revoked=True)
        return r.RevokedToken(tokens=[gone], endpoints=["e"], endpoints_revoked=endpoints)

    def _rules_of(self, owner: str) -> frozenset[str]:
        return frozenset()

    async def _health(self, caller: Caller | None = None) -> r.Health:
        checks = {"log": "ok", "disk": "/data is 91 % full", "triggers": "not ok: 1 of 2 do not run"}
        return r.Health(
            status=self.health_status, version="1", checks=checks, triggers={"secret": "/data/secret is missing"}
        )

    async def wait_for(self, position: str) -> None:
        if not position.startswith("events:"):
            raise Invalid(f"{position!r} is not a position", remedy="send back what an answer carried")
        self.waited.append(position)

    async def _collect(self) -> None:
        self.metrics.view_lag(5)

    def close_task(self, task_id: bytes, value: bytes, status: int = OK, state: str = "succeeded") -> None:
        self.ended[task_id] = Outcome(task_id, state, Ended(task_id, 1, status, 1, 2, value, b"printed\xff"))


class Client:
    """Sends requests as a user with a token does."""

    def __init__(self, session: aiohttp.ClientSession, serving: HttpServer, backend: MemoryBackend, streams: Streams):
        self.session, self.serving, self.backend, self.streams = session, serving, backend, streams

    def request(
        self, method: str, path: str, *, token: str = "user", headers: Mapping[str, str] | None = None, **kwargs: Any
    ) -> Any:
        sent = {"Authorization": f"Bearer {TOKENS.get(token, token)}"} if token else {}
        if isinstance(kwargs.get("data"), bytes):
            kwargs["data"] = io.BytesIO(kwargs["data"])  # large bytes would make aiohttp's client warn
        return self.session.request(method, self.serving.url + path, headers=sent | dict(headers or {}), **kwargs)

    async def ask(self, method: str, path: str, **kwargs: Any) -> tuple[int, Any, Any]:
        """Return (status, decoded body, headers)."""
        async with self.request(method, path, **kwargs) as answer:
            body = await answer.read()
            kind = answer.headers.get("Content-Type", "")
            if kind.endswith("json") and body:
                return answer.status, msgspec.json.decode(body), answer.headers
            if kind == "application/msgpack":
                return answer.status, msgspec.msgpack.decode(body), answer.headers
            return answer.status, body, answer.headers


def with_server(
    test: Callable[[Client], Awaitable[None]],
    streams: Callable[[], Streams] = Streams,
    logins: Sequence[AuthenticatorFactory] = AUTHENTICATORS,
    **settings: Any,
) -> None:
    """Run a test against a server of its own."""

    async def run() -> None:
        backend, open_streams = MemoryBackend(), streams()
        chosen = Settings(port=0, **settings)
        serving = await serve(make_app(backend, chosen, backend.metrics, open_streams, logins), chosen)
        try:
            async with aiohttp.ClientSession(auto_decompress=False) as session:
                await test(Client(session, serving, backend, open_streams))
        finally:
            with contextlib.suppress(RuntimeError):
                await serving.close()

    asyncio.run(asyncio.wait_for(run(), 30))


def packed(value: Any) -> bytes:
    return payload.pack(value)
