"""Accepts, shows and awaits tasks.

    submit_batch ──► Call + ids ──► TaskFrames ──append──► durable ──► Accepted
                                        └──(early watch)──► channel ──► agent

A request is answered with "accepted" when its record is durable. The task may be sent to its agent
while its commit is in progress: its outcome is behind it in the log's queue, so no outcome is
reported before the task is durable.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence

import msgspec

from oncue import ids as task_ids
from oncue.clocks.process import now_us
from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.bridge.socket import BridgeSocket
from oncue.dispatcher.cluster.ownership import PartitionOwnership
from oncue.dispatcher.cluster.peers import PeerClient
from oncue.dispatcher.context import READ_OWN_WRITES_S, ServerContext, position_text
from oncue.dispatcher.many_waits import ManyWaits, WaitingIds
from oncue.dispatcher.off_loop import MANY, off_loop, off_loop_if
from oncue.dispatcher.services.idempotency import (
    AcceptedRequest,
    IdempotencyCache,
    RequestKey,
    content_of,
    key_reused,
)
from oncue.dispatcher.services.open_reason import open_reason
from oncue.dispatcher.services.submission_checks import (
    check_payloads,
    parse_batch_key,
    split_records,
    stored_priority,
    stored_retry,
)
from oncue.dispatcher.services.task_info import task_info, timeline, with_usage
from oncue.errors import Invalid, NotFound, TooLarge
from oncue.log import Position, Record
from oncue.protocol import api as r
from oncue.protocol import payload
from oncue.protocol.api import Outcome
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION, Call, Ended, FunctionRecord, TaskFrame, TaskRecord
from oncue.protocol.stated_options import run_options
from oncue.protocol.topics import RESULTS
from oncue.task_lifecycle import STATE_WORDS, TaskState, end
from oncue.text.progress import continuation, last_states
from oncue.view.tasks import ClosedTask

OUTCOMES_BYTES = 4 << 20  # of values and outputs in one answer
RECENT = 100_000  # batch keys in memory; a repeated request with one of them costs no query
SLOW_BYTES = 8 * 1024  # of arguments: larger ones are packed beside the loop


class TaskService:
    """Tasks of all endpoints, on this server and its peers."""

    def __init__(
        self, context: ServerContext, bridge: BridgeSocket, ownership: PartitionOwnership, peers: PeerClient
    ) -> None:
        self._context, self._bridge, self._ownership, self._peers = context, bridge, ownership, peers
        self._requests = IdempotencyCache(RECENT)
        self._waiting = WaitingIds()
        self._functions: OrderedDict[tuple[str, str], FunctionRecord] = OrderedDict()

    # ------------------------------------------------------------ submit

    async def submit_batch(self, caller: Caller, request: r.BatchRequest) -> r.Accepted:
        """Accept many calls of one function; they are durable on return.

        A repeated key gives the same tasks. Raises Invalid, NotFound, Forbidden, TooLarge,
        Conflict.
        """
        self._context.check_accepting()
        payloads = request.payloads or [payload.pack_args(tuple(a), k) for a, k in request.calls]
        count = len(payloads)
        if not 0 < count <= self._context.settings.max_batch:
            raise Invalid(
                f"a batch has 1 to {self._context.settings.max_batch:,} calls, this one has {count:,}",
                remedy="send several batches",
                limit=self._context.settings.max_batch,
            )
        key = parse_batch_key(request.key)
        call = await self._call(caller, request)
        ids, tasks = await off_loop_if(count > MANY, _batch_tasks, caller.subject, key, payloads)
        request_key = (caller.subject, key)
        if request.key and self._is_old(key) and self._requests.find(request_key, call, tasks) is None:
            await self._context.barrier((self._context.registry.tasks_topic(call.endpoint), RESULTS))
            if await self._known(call, tasks[0]):
                return _accepted(ids, [])
        check_payloads(payloads)
        return _accepted(ids, (await self.append(request_key, call, tasks))[1])

    async def submit(self, caller: Caller, request: r.TaskRequest) -> r.TaskInfo:
        """Accept one call; durable on return. Wait up to `wait_ms` for its outcome."""
        self._context.check_accepting()
        given = (tuple(request.args), request.kwargs)
        packed = await off_loop_if(_is_slow(given), payload.pack_args, *given)
        check_payloads([packed])
        call = await self._call(caller, request)
        if request.key:
            seed = request.key.encode()
            task_id = task_ids.rule_task_ids("", "", caller.subject, request.key, None, 1)[0]
        else:
            seed = task_ids.new_uuid7()
            task_id = task_ids.batch_ids(caller.subject, seed, 1)[0]
        task = TaskRecord(task_id, packed)
        if request.key and await self._is_repeated((caller.subject, seed), call, task):
            return await self.get(caller, task_id.hex(), request.wait_ms)
        waiter = self._context.notifier.wait(task_id) if request.wait_ms else None
        try:
            accepted_us, positions = await self.append((caller.subject, seed), call, [task])
            position = position_text(positions)
            ended = await _within(waiter, request.wait_ms) if waiter else None
        finally:
            if waiter is not None:
                self._context.notifier.forget(task_id, waiter)
        state = TaskState(task_id, True, call, packed, accepted_us)
        if ended is not None:
            return self._ended_info(state, ended, position)
        return msgspec.structs.replace(self.info(state), position=position)

    async def append(self, request_key: RequestKey, call: Call, tasks: list[TaskRecord]) -> tuple[int, list[Position]]:
        """Append tasks. Return (their time of acceptance in unix µs, positions).

        A repeated key returns the values of the first request. Raises Conflict if that had other
        calls.
        """
        accepted = now_us()
        large = await off_loop(_task_records, call, accepted, tasks) if len(tasks) > MANY else None
        earlier = self._requests.find(request_key, call, tasks)
        if earlier is not None:
            return earlier.accepted_us, await asyncio.shield(earlier.durable)
        records = large or _task_records(call, accepted, tasks)
        future = self._context.log.append(self._context.registry.tasks_topic(call.endpoint), records, 0)
        self._requests.add(request_key, AcceptedRequest(accepted, future, content_of(call, tasks)))
        try:
            positions = await asyncio.shield(future)
        except Exception:
            self._requests.remove(request_key)
            raise
        self._context.metrics.accepted(len(tasks))
        return accepted, positions

    def _is_old(self, key: bytes) -> bool:
        """Return True for a key that the cache may not have.

        It is older than this server, or the cache is full and has dropped requests.
        """
        ms = int.from_bytes(key[:6], "big")
        return not self._context.is_new(ms * 1000) or self._requests.full

    async def _is_repeated(self, request_key: RequestKey, call: Call, task: TaskRecord) -> bool:
        """Return True if this request was accepted before. Waits until it is durable.

        Raises Conflict if its key was used for another call.
        """
        earlier = self._requests.find(request_key, call, [task])
        if earlier is None:
            return await self._known(call, task)
        await asyncio.shield(earlier.durable)
        return True

    async def _known(self, call: Call, task: TaskRecord) -> bool:
        """Return True if the view has this task.

        Raises Conflict if its key was used for another call.
        """
        state = await self._state(task.id)
        if state is None or state.call is None:
            return False
        if state.known and (state.args, state.call.function, state.call.endpoint) != (
            task.args,
            call.function,
            call.endpoint,
        ):
            raise key_reused()
        return True

    async def _state(self, task_id: bytes) -> TaskState | None:
        return await self._context.view.task(task_id)

    async def _call(self, caller: Caller, request: r.TaskRequest | r.BatchRequest) -> Call:
        try:
            endpoint = self._context.registry.find_endpoint(caller, request.endpoint)
            function = await self._function(caller, request.function)
        except NotFound:
            if not self._context.log.shared:
                raise
            await self._context.sync_registry()  # perhaps another server registered it a moment ago
            endpoint = self._context.registry.find_endpoint(caller, request.endpoint)
            function = await self._function(caller, request.function)
        return Call(
            VERSION,
            function.id,
            endpoint.id,
            caller.subject,
            function.name,
            retry=stored_retry(request.retry),
            timeout_ms=request.timeout_ms or 0,
            expires_us=now_us() + request.expires_ms * 1000 if request.expires_ms else 0,
            stream=getattr(request, "stream", ""),
            run=run_options(request.resources, request.sandbox, request.outputs, request.affinity),
            priority=stored_priority(request.priority),
        )

    async def _function(self, caller: Caller, name: str) -> FunctionRecord:
        known = self._functions.get((caller.subject, name))
        if known is not None:
            return known
        found = await self._context.view.function(name, caller.subject, of_others=caller.sees_all)
        if found is None:
            raise NotFound(
                f"there is no function {name!r}",
                remedy="register it: oncue functions register FILE.py:NAME (oncue functions list shows what there is)",
            )
        if name == found.id:  # a friendly name may get a new version; a hash stays what it is
            self._functions[caller.subject, name] = msgspec.structs.replace(found, body=b"")
            if len(self._functions) > RECENT:
                self._functions.popitem(last=False)
        return found

    # ------------------------------------------------------------ look up and wait

    async def get(self, caller: Caller, task_id: str, wait_ms: int = 0, bearer: str = "") -> r.TaskInfo:
        """Return a task. Wait up to `wait_ms` for its outcome.

        Raises NotFound, Invalid. `bearer`: the caller's Authorization header, to ask the owning
        server; "" to ask nobody.
        """
        state = await self._visible(caller, task_id)
        if wait_ms and not state.state.closed:
            waiter = self._context.notifier.wait(state.id)
            try:
                state = await self._visible(caller, task_id)  # it may have closed before the wait
                if not state.state.closed:
                    ended = await _within(waiter, wait_ms)
                    if ended is not None:
                        return self._ended_info(state, ended, "")
                    state = await self._visible(caller, task_id)
            finally:
                self._context.notifier.forget(state.id, waiter)
        info = with_usage(self.info(state), await self._context.view.task_usage(state.id))
        if state.state.closed or state.call is None:
            retries = await self._context.view.retries([state.id])
            return msgspec.structs.replace(info, replaced_by=retries[state.id].hex()) if retries else info
        return await self._peers.task(self._ownership.owner_url(state.call.endpoint), info, bearer)

    async def _visible(self, caller: Caller, text: str) -> TaskState:
        """Return the state of a task that the caller may see.

        It includes outcomes that streams have reported, and tasks accepted just before. Raises
        NotFound, Invalid.
        """
        task_id = task_ids.parse_task_id(text)
        state = await self._state(task_id)
        if state is None:  # perhaps it is newer than the view
            await self._context.barrier(self.topics())
            state = await self._state(task_id)
        elif not state.state.closed:  # streams report outcomes before the view has them
            await self._context.view.wait_for(await self._context.log.end_offsets((RESULTS,)), READ_OWN_WRITES_S)
            state = await self._state(task_id)
        return self._check_visible(caller, state, text)

    def _check_visible(self, caller: Caller, state: TaskState | None, text: str) -> TaskState:
        """Return the state if the caller may see it. Raises NotFound."""
        if state is None or state.call is None or not caller.sees(state.call.owner):
            raise NotFound(f"there is no task {text}", remedy="oncue tasks list shows yours")
        return state

    async def visible_states(self, caller: Caller, texts: Sequence[str]) -> list[TaskState]:
        """Return brief states of tasks that the caller may see, with one query for all.

        Raises NotFound, Invalid.
        """
        context = self._context
        ids = [task_ids.parse_task_id(text) for text in texts]
        found = await context.view.tasks_of(ids, brief=True)
        if any(i not in found for i in ids):
            await context.barrier(self.topics())
        elif any(not s.state.closed for s in found.values()):
            await context.view.wait_for(await context.log.end_offsets((RESULTS,)), READ_OWN_WRITES_S)
        open_ones = [i for i in ids if i not in found or not found[i].state.closed]
        found |= await context.view.tasks_of(open_ones, brief=True)
        return [self._check_visible(caller, found.get(i), text) for i, text in zip(ids, texts, strict=True)]

    def topics(self) -> list[str]:
        """Return the topics that hold tasks and their results."""
        return [*self._context.registry.tasks_topics(), RESULTS]

    def info(self, state: TaskState) -> r.TaskInfo:
        """Return a task for the API."""
        return task_info(state, self._context.registry.endpoint_name, *self.why(state))

    def why(self, state: TaskState) -> tuple[str, bool]:
        """Return why a task is open, and True if it is at its agent."""
        channel = self._bridge.channels.get(state.call.endpoint) if state.call else None
        sent = channel is not None and not state.state.closed and channel.at_agent(state.id)
        context = self._context
        why = open_reason(state, context.registry, self._bridge.channels, self._ownership, context.store_trouble)
        return why, sent

    def _ended_info(self, state: TaskState, e: Ended, position: str) -> r.TaskInfo:
        """Return a task closed by `e`, which the view may not have applied yet."""
        call = state.call
        assert call is not None
        state = msgspec.structs.replace(state, attempt=max(state.attempt, e.attempt))
        closed = end(state, msgspec.structs.replace(call, retry=None), state.accepted_us, e)
        used = {e.attempt: (e.cpu_us, e.peak_bytes)}
        return msgspec.structs.replace(with_usage(self.info(closed), used), position=position)

    async def timeline(self, caller: Caller, task_id: str) -> list[r.TimelineEntry]:
        """Return what happened to a task, oldest first. Raises NotFound, Invalid."""
        state = await self._visible(caller, task_id)
        workers = await self._context.view.task_workers(state.id)
        return timeline(state, workers, self._context.registry.endpoint_name)

    async def outcomes(self, caller: Caller, ids: Sequence[bytes], wait_ms: int = 0) -> list[Outcome]:
        """Return outcomes of closed tasks. Wait up to `wait_ms` until all are closed.

        At most about OUTCOMES_BYTES at once: then it does not wait (see `is_cut`).
        """
        if len(ids) > self._context.settings.max_batch:
            raise TooLarge(
                f"{len(ids):,} ids are too many for one request", remedy=f"ask for {self._context.settings.max_batch:,}"
            )
        if not wait_ms:
            await self._context.barrier((RESULTS,))
            return _visible_outcomes(caller, await self._context.view.outcomes(ids, OUTCOMES_BYTES))
        self._waiting.add(caller.subject, len(ids))
        waits = ManyWaits(self._context.notifier)
        try:
            await waits.add(ids)
            await self._context.barrier((RESULTS,))
            found = await self._context.view.outcomes(ids, OUTCOMES_BYTES)
            if not is_cut([c.ended for c in found]):
                await waits.until_closed([c.id for c in found], wait_ms / 1000)
                await self._context.barrier((RESULTS,))
                found = await self._context.view.outcomes(ids, OUTCOMES_BYTES)
        finally:
            try:
                await waits.close()
            finally:
                self._waiting.remove(caller.subject, len(ids))
        return _visible_outcomes(caller, found)

    def stream(self, caller: Caller, stream: str) -> AsyncIterator[bytes]:
        """Yield msgpack of list[Outcome] of this stream; b"" as a keep-alive."""
        return self._context.notifier.stream(stream, caller.subject)

    async def _logs_once(self, caller: Caller, task_id: str) -> tuple[TaskState, bytes]:
        state = await self._visible(caller, task_id)
        if state.state.closed:
            closing = state.closing
            return state, closing.output if closing else b""
        return state, await self._context.view.output(state.id)

    async def logs(self, caller: Caller, task_id: str, follow: bool) -> AsyncIterator[bytes]:
        """Yield the output of a task; with `follow`, until it closes.

        b"" is a keep-alive. Raises NotFound, Invalid.
        """
        sent = b""
        while True:
            state, text = await self._logs_once(caller, task_id)
            text = last_states(text).rstrip(b"\r")
            if more := continuation(sent, text):
                yield more
                sent = text
            if not follow or state.state.closed:
                return
            waiter = self._context.notifier.wait(state.id)
            try:
                await _within(waiter, 500)
            finally:
                self._context.notifier.forget(state.id, waiter)
            if waiter.done() and not waiter.cancelled():
                await self._context.barrier((RESULTS,))
            else:
                yield b""


# ---------------------------------------------------------------- small steps


def _visible_outcomes(caller: Caller, found: Sequence[ClosedTask]) -> list[Outcome]:
    return [
        Outcome(c.id, STATE_WORDS[c.ended.status], c.ended)
        for c in {c.id: c for c in found}.values()
        if caller.sees(c.call.owner)
    ]


def is_cut(outcomes: Sequence[Ended]) -> bool:
    """Return True if these are as many as are returned at once: there may be more."""
    return sum(len(e.value) + len(e.output) for e in outcomes) > OUTCOMES_BYTES


def _batch_tasks(subject: str, key: bytes, payloads: Sequence[bytes]) -> tuple[list[bytes], list[TaskRecord]]:
    ids = task_ids.batch_ids(subject, key, len(payloads))
    return ids, [TaskRecord(i, p) for i, p in zip(ids, payloads, strict=True)]


def _task_records(call: Call, accepted_us: int, tasks: list[TaskRecord]) -> list[Record]:
    return [Record(encode(TaskFrame(VERSION, call, accepted_us, part))) for part in split_records(tasks)]


def _accepted(ids: list[bytes], positions: list[Position]) -> r.Accepted:
    return r.Accepted(first=ids[0].hex(), count=len(ids), position=position_text(positions))


def _is_slow(arguments: object) -> bool:
    """Return True if packing the arguments takes over some milliseconds.

    It takes about 1 µs a value, and a value has at least one byte.
    """
    try:
        return len(encode(arguments)) > SLOW_BYTES
    except (OverflowError, TypeError, RecursionError):  # integers over 64 bits, or deep nesting
        return True


async def _within(waiter: asyncio.Future[Ended], wait_ms: int) -> Ended | None:
    done, _ = await asyncio.wait((waiter,), timeout=wait_ms / 1000)
    return waiter.result() if done and not waiter.cancelled() else None
