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

from oncue.clocks.process import now_us
from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.dispatcher.bridge.effects import (
    ChannelPhase,
    CheckTasks,
    Dropped,
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
from oncue.dispatcher.bridge.reports import AgentReports
from oncue.dispatcher.bridge.server_ends import end_cancelled
from oncue.dispatcher.bridge.socket import BridgeSocket
from oncue.dispatcher.bridge.transfers import BlobTransfers
from oncue.dispatcher.cluster.ownership import PartitionOwnership
from oncue.dispatcher.context import ServerContext
from oncue.dispatcher.view_consumer import PUBLISHED
from oncue.errors import Undecodable
from oncue.log import Position, Record
from oncue.protocol import bridge
from oncue.protocol.codec import encode
from oncue.protocol.records import Ended, TaskRecord
from oncue.protocol.topics import RESULTS
from oncue.task_lifecycle import STATE_WORDS, State, TaskState
from oncue.text.log_lines import LineLimiter

log = logging.getLogger("oncue.carrier")
STORE_AGAIN_S = 1.0  # after an append that failed
CHECKS_AT_ONCE = 64  # messages with results of tasks that are not in flight


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
        self._checks: dict[str, list[CheckTasks]] = {}  # endpoint -> those that wait
        self._limited = LineLimiter(log)
        self._phases = LineLimiter(log, burst=20)
        self._reports = AgentReports(context, self._job, self.drop)
        self._transfers = BlobTransfers(context, self._job, self._send_part, self.drop)
        self.usage = self._reports.usage  # endpoint -> its newest report
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
                waiting = self._checks.setdefault(channel.endpoint, [])
                waiting.append(effect)
                if len(waiting) == 1:
                    self._job(self._check(channel.endpoint, waiting))
            case EndWaitingTasks():
                self._job(self._end_waiting(channel.endpoint, effect.ids))
            case ReadPart():
                self._transfers.read(channel, effect)
            case WritePart():
                self._transfers.write(channel.endpoint, effect)
            case ForwardReport():
                self._reports.on_report(channel, effect.body)
            case Dropped():
                self.drop(channel.endpoint, effect.reason, effect.why, effect.count)
            case PhaseChanged():
                self._on_phase_changed(channel, effect)
            case SendFrame():
                raise TypeError("frames are sent by the bridge")

    def answer_unowned(self, endpoint: str, parts: list[bytes]) -> list[bytes] | None:
        """See EffectHandler: redirect the agent to the owner of its endpoint."""
        try:
            return self._ownership.answer_agent(endpoint, parts)
        except Undecodable as e:
            self.drop(endpoint, "frame", f"sent a message that cannot be decoded: {e.message}")
            return None

    def on_read(self, channel: EndpointChannel) -> None:
        """See EffectHandler."""
        self._transfers.resume(channel)

    def _send_part(self, endpoint: str, part: bridge.BlobPart | bridge.UploadAck, body: bytes) -> None:
        self._bridge.with_channel(endpoint, lambda channel: channel.send_part(part, body))

    def _job(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._jobs.add(task)
        task.add_done_callback(self._job_done)

    def _job_done(self, task: asyncio.Task[None]) -> None:
        self._jobs.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("work for an endpoint failed", exc_info=task.exception())

    async def close(self) -> None:
        """Cancel effects in progress, and delete unfinished uploads."""
        self._transfers.close()
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
        page = await self._context.view.open_page(
            endpoint, self._context.registry.tasks_topic(endpoint), effect.after, effect.limit, effect.priority
        )
        rows = [OpenTask(*row) for row in page.rows]
        self._bridge.with_channel(
            endpoint,
            lambda channel: channel.on_page(effect.token, rows, page.reached, effect.priority, page.others),
        )

    async def _check(self, endpoint: str, waiting: list[CheckTasks]) -> None:
        """Answer the checks of an endpoint, many by one question to the view."""
        try:
            while waiting:
                part = waiting[:CHECKS_AT_ONCE]  # before the barrier, which covers their tasks
                await self._context.barrier((self._context.registry.tasks_topic(endpoint), RESULTS))
                calls = await self._context.view.calls_of([i for effect in part for i in effect.ids])
                own = {task_id: call for task_id, call in calls.items() if call.endpoint == endpoint}
                del waiting[: len(part)]
                for effect in part:
                    self._bridge.with_channel(
                        endpoint, partial(EndpointChannel.on_checked, token=effect.token, calls=own)
                    )
        finally:
            self._checks.pop(endpoint, None)

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

    # ------------------------------------------------------------ phases and refusals

    def drop(self, endpoint: str, reason: str, why: str, count: int = 1) -> None:
        """Count what an agent may not send, and log it once a minute.

        `reason`: one of a few words; `why`: with a verb, after the agent's name.
        """
        self._context.metrics.agent_refused(reason, count)
        name = self._context.registry.endpoint_name(endpoint)
        self._limited.warning((endpoint, reason), "the agent of endpoint %s (%s) %s", name, endpoint, why)

    def refuse_peer(self, address: str, why: str) -> None:
        """See EffectHandler."""
        self._context.metrics.agent_refused("key", 1)
        self._limited.warning("key", "a peer at %s was refused by the bridge: %s", address, why)

    def _on_phase_changed(self, channel: EndpointChannel, effect: PhaseChanged) -> None:
        registry = self._context.registry
        name, known = registry.endpoint_name(channel.endpoint), registry.endpoint(channel.endpoint)
        self.phase_reasons[channel.endpoint] = effect.why
        self._phases.log(logging.INFO, channel.endpoint, "endpoint %s is %s: %s", name, effect.phase.value, effect.why)
        item = {"name": name, "owner": known.owner if known else "", "state": effect.phase.value, "why": effect.why}
        self._context.notifier.publish_item("endpoint", item)
        if effect.phase is ChannelPhase.READY:
            self._job(self._repeat_cancels(channel.endpoint))
        else:
            self._transfers.end_session(channel.endpoint)

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
