"""Runs the effects of channels on the log, the view and the blobs.

BridgeSocket sends frames; all other effects (effects.py) come here. Outcomes are published only
after their record is durable.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any

from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.dispatcher.bridge.effects import (
    ChannelPhase,
    CheckTasks,
    Effect,
    EndWaitingTasks,
    ForwardReport,
    LoadOpenTasks,
    PhaseChanged,
    ReadPart,
    SendFrame,
    StoreResults,
    WritePart,
)
from oncue.dispatcher.bridge.pending_tasks import OpenTask, TaskGroup
from oncue.dispatcher.bridge.server_ends import end_cancelled
from oncue.dispatcher.bridge.socket import BridgeSocket
from oncue.dispatcher.cluster.ownership import PartitionOwnership
from oncue.dispatcher.context import ServerContext
from oncue.dispatcher.live_feed import about
from oncue.dispatcher.notifier import STATE_WORDS
from oncue.dispatcher.view_consumer import PUBLISHED
from oncue.errors import OncueError, Undecodable
from oncue.ids import now_us
from oncue.log import Position, Record
from oncue.protocol import bridge
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import Ended, Report, Started, TaskRecord, Usage
from oncue.protocol.topics import REGISTRY, REPORTS, RESULTS
from oncue.task_lifecycle import State, TaskState

log = logging.getLogger("oncue.carrier")
STORE_AGAIN_S = 1.0  # after an append that failed


class EffectRunner:
    """The EffectHandler of a server.

    It runs effects, and keeps the newest usage and phase of each endpoint.
    """

    _bridge: BridgeSocket
    _ownership: PartitionOwnership

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._mark = ((PUBLISHED, context.server_id.encode()),)
        self._jobs: set[asyncio.Task[None]] = set()
        self._uploads: dict[tuple[str, str], Any] = {}
        self.usage: dict[str, Usage] = {}  # endpoint -> its newest report
        self.phase_reasons: dict[str, str] = {}  # endpoint -> reason of its phase

    def attach(self, bridge: BridgeSocket, ownership: PartitionOwnership) -> None:
        """Set the parts whose constructors need this one.

        Call it before the event loop runs again.
        """
        self._bridge, self._ownership = bridge, ownership

    def run(self, channel: EndpointChannel, effect: Effect) -> None:
        """Start an effect. Call the channel back when it is done."""
        match effect:  # the most frequent first
            case StoreResults():
                self._store(channel.endpoint, effect)
            case LoadOpenTasks():
                self._job(self._load(channel.endpoint, effect))
            case CheckTasks():
                self._job(self._check(channel.endpoint, effect))
            case EndWaitingTasks():
                self._job(self._end_waiting(channel.endpoint, effect.ids))
            case ReadPart():
                self._job(self._read_part(channel.endpoint, effect))
            case WritePart():
                self._job(self._write_part(channel.endpoint, effect))
            case ForwardReport():
                self._report(channel, effect.body)
            case PhaseChanged():
                self._on_phase_changed(channel, effect)
            case SendFrame():
                raise TypeError("frames are sent by the bridge")

    def answer_unowned(self, endpoint: str, parts: list[bytes]) -> list[bytes] | None:
        """See EffectHandler: redirect the agent to the owner of its endpoint."""
        try:
            return self._ownership.answer_agent(endpoint, parts)
        except Undecodable as e:
            log.warning("endpoint %s sent a message that cannot be decoded: %s", endpoint, e.message)
            return None

    def _job(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._jobs.add(task)
        task.add_done_callback(self._job_done)

    def _job_done(self, task: asyncio.Task[None]) -> None:
        self._jobs.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("work for an endpoint failed", exc_info=task.exception())

    async def close(self) -> None:
        """Cancel effects in progress."""
        for task in list(self._jobs):
            task.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)

    # ------------------------------------------------------------ results

    def _store(self, endpoint: str, effect: StoreResults) -> None:
        headers = self._mark if effect.closing_complete else ()
        future = self._context.log.append(RESULTS, [Record(effect.record, headers=headers)])
        future.add_done_callback(partial(self._stored, endpoint, effect))

    def _stored(self, endpoint: str, effect: StoreResults, future: asyncio.Future[list[Position]]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is not None:
            log.error("outcomes of endpoint %s could not be stored: %s", endpoint, error)
            if not effect.by_server:
                self._bridge.with_channel(endpoint, lambda channel: channel.on_store_failed(effect.token))
            else:
                asyncio.get_running_loop().call_later(STORE_AGAIN_S, self._store, endpoint, effect)
            return
        if effect.closing:
            self._publish(endpoint, effect, future.result())
        # After the callbacks of the streams: clients wait for outcomes, the agent does not wait for
        # the ack.
        asyncio.get_running_loop().call_soon(
            self._bridge.with_channel, endpoint, lambda channel: channel.on_stored(effect.token)
        )

    def _publish(self, endpoint: str, effect: StoreResults, positions: list[Position]) -> None:
        # A later claim may precede the record in the log.
        fenced = effect.by_server and self._context.log.shared
        if self._ownership.is_exclusive(endpoint) and not fenced:
            self._context.notifier.publish(effect.call, effect.closing)
            self._context.metrics.outcomes(_by_state(effect.closing))
        else:
            self._job(self._publish_by_view([e.id for e in effect.closing], positions))

    async def _publish_by_view(self, ids: list[bytes], positions: list[Position]) -> None:
        """Publish the ends that count according to the view.

        Another server may own the endpoint by now and have ended tasks itself. The order of the log
        decides.
        """
        await self._context.applied(positions)
        found = await self._context.view.outcomes(ids)
        for closing in found:
            self._context.notifier.publish(closing.call, [closing.ended])
        self._context.metrics.outcomes(_by_state([c.ended for c in found]))

    # ------------------------------------------------------------ what the view knows

    async def _load(self, endpoint: str, effect: LoadOpenTasks) -> None:
        await self._context.barrier((self._context.registry.tasks_topic(endpoint), RESULTS))
        rows, reached = await self._context.view.open_page(
            endpoint, self._context.registry.tasks_topic(endpoint), effect.after, effect.limit
        )
        pages = [OpenTask(*row) for row in rows]
        self._bridge.with_channel(endpoint, lambda channel: channel.on_page(effect.token, pages, reached))

    async def _check(self, endpoint: str, effect: CheckTasks) -> None:
        await self._context.barrier((self._context.registry.tasks_topic(endpoint), RESULTS))
        states = await self._context.view.states(effect.ids)
        known = {task_id for task_id, (_, where) in states.items() if where == endpoint}
        if len(known) < len(effect.ids):
            log.warning(
                "endpoint %s reported ends of %d tasks that were never accepted", endpoint, len(effect.ids) - len(known)
            )
        self._bridge.with_channel(endpoint, lambda channel: channel.on_checked(effect.token, known))

    async def _end_waiting(self, endpoint: str, ids: list[bytes]) -> None:
        """End waiting tasks.

        Repeat until each is closed or at the agent, since an attempt may end at the same time.
        """
        while ids:
            await self._context.barrier((self._context.registry.tasks_topic(endpoint), RESULTS))
            states = [await self._context.view.task(task_id) for task_id in ids]
            ids = [s.id for s in states if s is not None and self._end_one(endpoint, s)]

    def _end_one(self, endpoint: str, state: TaskState) -> bool:
        """Append the end of a waiting task.

        Return False if there is nothing to append.
        """
        channel = self._bridge.channels.get(endpoint)
        if channel is None or state.call is None or state.state is not State.WAITING:
            return False
        task = task_of(state)
        group = TaskGroup(state.call, encode(state.call), state.attempt, state.accepted_us, [task], 0)
        end = end_cancelled(task, state.attempt, now_us(), state.cancel_by)
        if not channel.end_waiting(group, [end]):
            channel.cancel([state.id], "cancelled")
        self._bridge.run_effects(channel)
        return not channel.at_agent(state.id)

    # ------------------------------------------------------------ blobs and function bodies

    async def _read_part(self, endpoint: str, effect: ReadPart) -> None:
        sha, offset = effect.sha256, effect.offset_bytes
        size, body, why = 0, b"", ""
        try:
            record = await self._context.view.function(sha)
            # Another server may have registered it a moment ago.
            if record is None and self._context.log.shared:
                await self._context.barrier((REGISTRY,))
                record = await self._context.view.function(sha)
            if record is not None and record.body:
                size, body = len(record.body), record.body[offset : offset + bridge.PART_BYTES]
            else:
                size = await asyncio.to_thread(self._context.blobs.size, sha)
                body = await asyncio.to_thread(self._context.blobs.part, sha, offset, bridge.PART_BYTES)
        except OncueError as e:
            why = e.message
        self._bridge.with_channel(
            endpoint, lambda channel: channel.send_part(bridge.BlobPart(sha, offset, size, why), body)
        )

    async def _write_part(self, endpoint: str, effect: WritePart) -> None:
        key = (endpoint, effect.sha256)
        why, at = "", effect.offset_bytes
        try:
            if await asyncio.to_thread(self._context.blobs.has, effect.sha256):
                at = effect.size_bytes
            else:
                upload = self._uploads.get(key)
                if upload is None or effect.offset_bytes == 0:
                    if upload is not None:
                        upload.abort()
                    upload = self._uploads[key] = self._context.blobs.upload(effect.sha256, effect.size_bytes)
                at = await asyncio.to_thread(upload.write, effect.offset_bytes, effect.body)
                if at >= effect.size_bytes:
                    await asyncio.to_thread(upload.finish)
                    del self._uploads[key]
        except OncueError as e:
            why = e.message
            self._uploads.pop(key, None)
        self._bridge.with_channel(endpoint, lambda channel: channel.send_part(bridge.UploadAck(effect.sha256, at, why)))

    # ------------------------------------------------------------ reports and phases

    def _report(self, channel: EndpointChannel, body: bytes) -> None:
        endpoint = channel.endpoint
        try:
            report: Report = decode(Report, body)  # type: ignore[arg-type]
        except Undecodable as e:
            log.warning("endpoint %s sent a report that cannot be decoded: %s", endpoint, e.message)
            return
        if report.endpoint != endpoint:
            return
        corrected = channel.agent_clock.correct_report(report, channel.now_us)
        if corrected is not report:
            report, body = corrected, encode(corrected)
        if isinstance(report, Usage):
            self.usage[endpoint] = report
        elif self._context.notifier.watched and isinstance(report, Started):
            self._show_started(channel, report)
        # Reports may be lost, so the append is not awaited.
        self._context.log.append(REPORTS, [Record(body, key=endpoint.encode())]).add_done_callback(_ignore_error)

    def _show_started(self, channel: EndpointChannel, report: Started) -> None:
        for task_id, attempt, started_us in report.tasks:
            group = channel.in_flight.get(task_id)
            if group is not None:
                item = {
                    "id": task_id.hex(),
                    "state": "running",
                    "attempt": attempt,
                    "started_us": started_us,
                    **about(group.call),
                }
                self._context.notifier.publish_item("task", item)

    def _on_phase_changed(self, channel: EndpointChannel, effect: PhaseChanged) -> None:
        registry = self._context.registry
        name, known = registry.endpoint_name(channel.endpoint), registry.endpoint(channel.endpoint)
        self.phase_reasons[channel.endpoint] = effect.why
        log.info("endpoint %s is %s: %s", name, effect.phase.value, effect.why)
        item = {"name": name, "owner": known.owner if known else "", "state": effect.phase.value, "why": effect.why}
        self._context.notifier.publish_item("endpoint", item)
        if effect.phase is ChannelPhase.READY:
            self._job(self._repeat_cancels(channel.endpoint))

    async def _repeat_cancels(self, endpoint: str) -> None:
        """Repeat earlier cancel requests for tasks of the endpoint.

        They came before this server owned the endpoint, or before the agent connected.
        """
        wanted = await self._context.view.cancels(10_000)
        ids = [task_id for task_id, where in wanted if where == endpoint]
        if ids:
            self._bridge.with_channel(endpoint, lambda channel: channel.cancel(ids, "cancelled"))


def task_of(state: TaskState) -> TaskRecord:
    """Return the task as it was accepted, from the view's state of it."""
    return TaskRecord(state.id, state.args, state.event, state.retry_of, state.mark_us)


def _by_state(closing: Sequence[Ended]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for e in closing:
        word = STATE_WORDS[e.status]
        counts[word] = counts.get(word, 0) + 1
    return counts


def _ignore_error(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
