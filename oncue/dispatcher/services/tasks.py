"""Tasks: taken in, looked up, waited for, retried.

    submit_batch ──► Call + ids ──► TaskFrames ──append──► durable ──► Accepted
                                        └──(early watch)──► lane ──► agent

"Accepted" is told only when the record is durable. The task may be under way to its agent while its commit is: its outcome
waits behind it in the log's queue, so nothing is told before.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from oncue import ids as task_ids
from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.context import READ_OWN_WRITES_S, ServerContext, position_text
from oncue.dispatcher.http.backend import TaskQuery
from oncue.dispatcher.notifier import STATE_WORDS
from oncue.dispatcher.services.idempotency import IdempotencyCache, Mark, Seen, content_of, reused
from oncue.dispatcher.services.task_info import task_info, timeline
from oncue.errors import Conflict, Forbidden, Invalid, NotFound, TooLarge
from oncue.ids import now_us
from oncue.lifecycle import TaskState, end
from oncue.log import Position, Record
from oncue.protocol import api as r
from oncue.protocol import payload
from oncue.protocol.api import Outcome
from oncue.protocol.codec import encode
from oncue.protocol.records import INLINE_BYTES, VERSION, Call, Ended, FunctionRecord, TaskFrame, TaskRecord
from oncue.protocol.topics import RESULTS
from oncue.view import TaskFilter

RECORD_TASKS = 1_024  # tasks in one record of the log
RECORD_BYTES = 1 << 20
RECENT = 100_000  # batch keys remembered, so that a repeated request costs nothing


class TaskDesk(ServerContext):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._repeats = IdempotencyCache(RECENT)
        self._functions: OrderedDict[tuple[str, str], FunctionRecord] = OrderedDict()

    # ------------------------------------------------------------ in

    async def submit_batch(self, who: Caller, request: r.BatchRequest) -> r.Accepted:
        self.accepting()
        payloads = request.payloads or [payload.pack_args(tuple(a), k) for a, k in request.calls]
        count = len(payloads)
        if not 0 < count <= self.settings.max_batch:
            raise Invalid(
                f"a batch has 1 to {self.settings.max_batch:,} calls, this one has {count:,}",
                remedy="send several batches",
                limit=self.settings.max_batch,
            )
        key = _batch_key(request.key)
        call = await self._call(who, request)
        ids = task_ids.batch_ids(who.subject, key, count)
        tasks = [TaskRecord(i, p) for i, p in zip(ids, payloads, strict=True)]
        mark = (who.subject, key)
        if request.key and self._is_old(key) and self._repeats.find(mark, call, tasks) is None:
            await self.barrier((self.tasks_topic(call.endpoint), RESULTS))
            if await self._known(call, tasks[0]):
                return _accepted(ids, [])
        _check_payloads(payloads)
        return _accepted(ids, (await self._append(mark, call, tasks))[1])

    async def submit(self, who: Caller, request: r.TaskRequest) -> r.TaskInfo:
        self.accepting()
        packed = payload.pack_args(tuple(request.args), request.kwargs)
        _check_payloads([packed])
        call = await self._call(who, request)
        if request.key:
            seed = request.key.encode()
            task_id = task_ids.rule_task_ids("", "", who.subject, request.key, None, 1)[0]
        else:
            seed = task_ids.new_uuid7()
            task_id = task_ids.batch_ids(who.subject, seed, 1)[0]
        task = TaskRecord(task_id, packed)
        if request.key and await self._is_repeated((who.subject, seed), call, task):
            return await self.task(who, task_id.hex(), request.wait_ms)
        waiter = self.board.wait(task_id) if request.wait_ms else None
        try:
            accepted_us, positions = await self._append((who.subject, seed), call, [task])
            position = position_text(positions)
            ended = await _within(waiter, request.wait_ms) if waiter else None
        finally:
            if waiter is not None:
                self.board.forget(task_id, waiter)
        state = TaskState(task_id, True, call, packed, accepted_us)
        if ended is not None:
            return self._ended_info(state, ended, position)
        return msgspec.structs.replace(self._info(state), position=position)

    async def _append(self, mark: Mark, call: Call, tasks: list[TaskRecord]) -> tuple[int, list[Position]]:
        """(when they were accepted, as their record says, unix µs; the record's positions). Again with the same key: as
        the first time. Raises Conflict when that was for other calls."""
        seen = self._repeats.find(mark, call, tasks)
        if seen is not None:
            return seen.accepted_us, await asyncio.shield(seen.durable)
        accepted = now_us()
        records = [Record(encode(TaskFrame(VERSION, call, accepted, part))) for part in _parts(tasks)]
        future = self.log.append(self.tasks_topic(call.endpoint), records, 0)
        self._repeats.keep(mark, Seen(accepted, future, content_of(call, tasks)))
        try:
            positions = await asyncio.shield(future)
        except Exception:
            self._repeats.forget(mark)
            raise
        self.metrics.accepted(len(tasks))
        return accepted, positions

    def _is_old(self, key: bytes) -> bool:
        """A key from before this server's start, or from before what is remembered: the view must be asked."""
        ms = int.from_bytes(key[:6], "big")
        return ms * 1000 < self.started_us or self._repeats.full

    async def _is_repeated(self, mark: Mark, call: Call, task: TaskRecord) -> bool:
        """Whether this very request was accepted before; it is durable then. Raises Conflict."""
        seen = self._repeats.find(mark, call, [task])
        if seen is None:
            return await self._known(call, task)
        await asyncio.shield(seen.durable)
        return True

    async def _known(self, call: Call, task: TaskRecord) -> bool:
        """Whether the view has this task. Raises Conflict when its key was used for another call."""
        state = await self._state(task.id)
        if state is None or state.call is None:
            return False
        if state.known and (state.args, state.call.function, state.call.endpoint) != (
            task.args,
            call.function,
            call.endpoint,
        ):
            raise reused()
        return True

    async def _state(self, task_id: bytes) -> TaskState | None:
        return await self.view.task(task_id)

    async def _call(self, who: Caller, request: r.TaskRequest | r.BatchRequest) -> Call:
        try:
            endpoint = self.find_endpoint(who, request.endpoint)
            function = await self._function(who, request.function)
        except NotFound:
            if not self.log.shared:
                raise
            await self.registry_caught_up()  # registered through another server a moment ago, perhaps
            endpoint = self.find_endpoint(who, request.endpoint)
            function = await self._function(who, request.function)
        return Call(
            VERSION,
            function.id,
            endpoint.id,
            who.subject,
            function.name,
            retry=_retry(request.retry),
            timeout_ms=request.timeout_ms or 0,
            expires_us=now_us() + request.expires_ms * 1000 if request.expires_ms else 0,
            stream=getattr(request, "stream", ""),
        )

    async def _function(self, who: Caller, name: str) -> FunctionRecord:
        known = self._functions.get((who.subject, name))
        if known is not None:
            return known
        found = await self.view.function(name, owner=who.subject)
        if found is None:
            raise NotFound(
                f"there is no function {name!r}",
                remedy="register it: oncue functions register FILE.py:NAME (oncue functions list shows what there is)",
            )
        if name == found.id:  # a friendly name may get a new version; a hash stays what it is
            self._functions[who.subject, name] = msgspec.structs.replace(found, body=b"")
            if len(self._functions) > RECENT:
                self._functions.popitem(last=False)
        return found

    # ------------------------------------------------------------ looked up and waited for

    async def task(self, who: Caller, task_id: str, wait_ms: int = 0, bearer: str = "") -> r.TaskInfo:
        state = await self._mine(who, task_id)
        if wait_ms and not state.state.closed:
            waiter = self.board.wait(state.id)
            try:
                state = await self._mine(who, task_id)  # it may have closed just before we waited
                if not state.state.closed:
                    ended = await _within(waiter, wait_ms)
                    if ended is not None:
                        return self._ended_info(state, ended, "")
                    state = await self._mine(who, task_id)
            finally:
                self.board.forget(state.id, waiter)
        info = self._info(state)
        if state.state.closed or state.call is None:
            return info
        return await self.across.task(self.owners.owner_url(state.call.endpoint), info, bearer)

    async def _mine(self, who: Caller, text: str) -> TaskState:
        task_id = parse_id(text)
        state = await self._state(task_id)
        if state is None:  # accepted a moment ago, perhaps
            await self.barrier(await self._task_topics())
            state = await self._state(task_id)
        elif not state.state.closed:  # its outcome may have been told already: streams are ahead of the view
            await self.view.wait_for(await self.log.end_offsets((RESULTS,)), READ_OWN_WRITES_S)
            state = await self._state(task_id)
        return self._owned(who, state, text)

    def _owned(self, who: Caller, state: TaskState | None, text: str) -> TaskState:
        if state is None or state.call is None or not who.sees(state.call.owner):
            raise NotFound(f"there is no task {text}", remedy="oncue tasks list shows yours")
        return state

    async def _task_topics(self) -> list[str]:
        return [*{self.tasks_topic(e) for e in self._endpoints}, RESULTS]

    def _info(self, state: TaskState) -> r.TaskInfo:
        channel = self.bridge.channels.get(state.call.endpoint) if state.call else None
        sent = channel is not None and not state.state.closed and channel.at_agent(state.id)
        return task_info(state, self.endpoint_name, self._why(state), sent)

    def _ended_info(self, state: TaskState, e: Ended, position: str) -> r.TaskInfo:
        """With the closing end that was told, which the view may not have yet, nor the attempts before it."""
        call = state.call
        assert call is not None
        state = msgspec.structs.replace(state, attempt=max(state.attempt, e.attempt))
        closed = end(state, msgspec.structs.replace(call, retry=None), state.accepted_us, e)
        return msgspec.structs.replace(self._info(closed), position=position)

    def _why(self, state: TaskState) -> str:
        """Why a task waits: the reason that the code has."""
        if state.state.closed or state.call is None:
            return ""
        channel = self.bridge.channels.get(state.call.endpoint)
        name = self.endpoint_name(state.call.endpoint)
        endpoint = self._endpoints.get(state.call.endpoint)
        if endpoint is None or endpoint.revoked:
            return f"endpoint {name!r} was revoked"
        if state.due_us > now_us():
            return f"attempt {state.attempt} is due in {(state.due_us - now_us()) / 1e6:.1f} s"
        if channel is None:
            return self._why_elsewhere(state, name)
        if channel.refused:
            return f"endpoint {name!r} is refused: {channel.refused}"
        if channel.phase.value == "away":
            since = f" for {(now_us() - channel.since_us) / 1e6:.0f} s" if channel.since_us else ", it has not come yet"
            return f"endpoint {name!r} is away{since}; start it: oncue endpoint start {name}"
        if state.running[0] == state.attempt:
            return "it runs"
        if channel.at_agent(state.id):
            return f"it is at endpoint {name!r}, for a free worker or running"
        return f"endpoint {name!r} has no free worker; {channel.pending.queued_tasks:,} tasks wait here"

    def _why_elsewhere(self, state: TaskState, name: str) -> str:
        """By a server that does not act for its endpoint."""
        assert state.call is not None
        if state.running[0] == state.attempt:
            return "it runs"
        place = self.owners.owner_label(state.call.endpoint)
        if not place:
            return f"no server acts for endpoint {name!r} yet"
        return f"the server {place} acts for endpoint {name!r}: that one can say more"

    async def tasks(self, who: Caller, query: TaskQuery) -> r.Page:
        endpoint = query.endpoint
        if endpoint:
            endpoint = self.find_endpoint(who, endpoint).id
        filters = TaskFilter(
            state=query.state,
            endpoint=endpoint,
            function=query.function,
            rule=query.rule,
            event=query.event,
            owner=who.only or query.owner,
            since_us=query.since_us,
            cursor=query.cursor,
            limit=query.limit,
        )
        rows, cursor = await self.view.tasks(filters)
        return r.Page(items=[self._info(row) for row in rows], next=cursor)

    async def timeline(self, who: Caller, task_id: str) -> list[r.TimelineEntry]:
        return timeline(await self._mine(who, task_id), self.endpoint_name)

    async def outcomes(self, who: Caller, ids: Sequence[bytes], wait_ms: int = 0) -> list[Outcome]:
        if len(ids) > self.settings.max_batch:
            raise TooLarge(
                f"{len(ids):,} ids are too many for one request", remedy=f"ask for {self.settings.max_batch:,}"
            )
        waiters = {i: self.board.wait(i) for i in ids} if wait_ms else {}
        try:
            await self.barrier((RESULTS,))
            found = {c.id: c for c in await self.view.outcomes(ids)}
            open_waiters = [w for i, w in waiters.items() if i not in found]
            if open_waiters:
                await asyncio.wait(open_waiters, timeout=wait_ms / 1000)
                await self.barrier((RESULTS,))
                found = {c.id: c for c in await self.view.outcomes(ids)}
        finally:
            for i, waiter in waiters.items():
                self.board.forget(i, waiter)
        return [Outcome(c.id, STATE_WORDS[c.ended.status], c.ended) for c in found.values() if who.sees(c.call.owner)]

    def stream(self, who: Caller, stream: str) -> AsyncIterator[bytes]:
        return self.board.stream(stream, who.subject)

    async def logs_once(self, who: Caller, task_id: str) -> tuple[TaskState, bytes]:
        state = await self._mine(who, task_id)
        if state.state.closed:
            closing = state.closing
            return state, closing.output if closing else b""
        return state, await self.view.output(state.id)

    async def logs(self, who: Caller, task_id: str, follow: bool) -> AsyncIterator[bytes]:
        """What the task printed; follow: as it comes, until it closes."""
        said = 0
        while True:
            state, text = await self.logs_once(who, task_id)
            if len(text) > said:
                yield text[said:]
                said = len(text)
            if not follow or state.state.closed:
                return
            waiter = self.board.wait(state.id)
            try:
                await _within(waiter, 500)
            finally:
                self.board.forget(state.id, waiter)
            if waiter.done() and not waiter.cancelled():
                await self.barrier((RESULTS,))
            else:
                yield b""

    # ------------------------------------------------------------ retried

    async def retry(self, who: Caller, task_id: str) -> r.TaskInfo:
        """A new task with the same call and arguments, that names the old one."""
        self.accepting()
        state = await self._mine(who, task_id)
        if not state.state.closed:
            raise Conflict(f"task {task_id} is still open", remedy="cancel it first, or wait until it has ended")
        if not state.known or state.call is None:
            raise Conflict(
                f"the arguments of task {task_id} are not in the log any more",
                remedy="submit it again with its arguments",
            )
        endpoint = self._endpoints.get(state.call.endpoint)
        if endpoint is None or endpoint.revoked:
            raise Forbidden("its endpoint was revoked", remedy="submit it to another endpoint")
        key = task_ids.new_uuid7()
        new_id = task_ids.batch_ids(who.subject, key, 1)[0]
        call = msgspec.structs.replace(state.call, expires_us=0, stream="")
        task = TaskRecord(new_id, state.args, state.event, state.id, state.mark_us)
        accepted_us, _ = await self._append((who.subject, key), call, [task])
        fresh = TaskState(new_id, True, call, state.args, accepted_us, event=state.event, retry_of=state.id)
        return self._info(fresh)


# ---------------------------------------------------------------- small steps


def _batch_key(text: str) -> bytes:
    if not text:
        return task_ids.new_uuid7()
    try:
        return task_ids.parse(text)
    except ValueError as e:
        raise Invalid(f"key: {e}", remedy="a batch key is a UUIDv7, as 32 hex digits") from None


def parse_id(text: str) -> bytes:
    try:
        return task_ids.parse(text)
    except ValueError:
        raise Invalid(f"{text!r} is not a task id", remedy="an id has 32 hex digits: oncue tasks list") from None


def _retry(policy: r.RetryPolicy | None) -> Any:
    if policy is None:
        return None
    bad = [word for word in policy.on if word not in ("lost", "error", "timeout")]
    if bad or policy.backoff not in ("exponential", "constant") or min(policy.max, policy.base_ms, policy.cap_ms) < 0:
        raise Invalid(
            "retry: not a policy that oncue knows",
            remedy="on: of lost, error, timeout; backoff: exponential or constant; max, base_ms, cap_ms not negative",
        )
    return policy.stored() if policy.max else None


def _check_payloads(payloads: Sequence[bytes]) -> None:
    if max(map(len, payloads)) > INLINE_BYTES + 1:
        i = max(range(len(payloads)), key=lambda i: len(payloads[i]))
        raise TooLarge(
            f"the arguments of call {i} have {len(payloads[i]):,} bytes; {INLINE_BYTES:,} travel inline",
            remedy="upload them first (PUT /v1/blobs/{sha256}) and send a reference; oncue.Client does that by itself",
            limit_bytes=INLINE_BYTES,
        )


def _parts(tasks: list[TaskRecord]) -> list[list[TaskRecord]]:
    """Frames of at most RECORD_TASKS tasks and about RECORD_BYTES."""
    total = sum(len(t.args) for t in tasks)
    if len(tasks) <= RECORD_TASKS and total <= RECORD_BYTES:
        return [tasks]
    parts: list[list[TaskRecord]] = [[]]
    size = 0
    for t in tasks:
        if parts[-1] and (len(parts[-1]) >= RECORD_TASKS or size + len(t.args) > RECORD_BYTES):
            parts.append([])
            size = 0
        parts[-1].append(t)
        size += len(t.args)
    return parts


def _accepted(ids: list[bytes], positions: list[Position]) -> r.Accepted:
    return r.Accepted(first=ids[0].hex(), count=len(ids), position=position_text(positions))


async def _within(waiter: asyncio.Future[Ended], wait_ms: int) -> Ended | None:
    done, _ = await asyncio.wait((waiter,), timeout=wait_ms / 1000)
    return waiter.result() if done and not waiter.cancelled() else None
