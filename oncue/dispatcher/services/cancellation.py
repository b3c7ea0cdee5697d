"""Cancels tasks: all of them, or only those not sent to their endpoint yet.

    cancel           ──Cancel record──► durable ──► channel: asks the agent, or ends a pending task
    cancel (waiting) ──channel holds the task──► still open? ──► as above, for these tasks only
                     └─the owner is another server──► one request a server (peers.py)

concurrent.futures allows to cancel a future unless its call runs. So the check that a task is
pending, and the decision not to send it, are one step of its channel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from oncue.clocks.process import now_us
from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.dispatcher.bridge.socket import BridgeSocket
from oncue.dispatcher.cluster.ownership import PartitionOwnership
from oncue.dispatcher.cluster.peers import PeerClient
from oncue.dispatcher.context import ServerContext
from oncue.dispatcher.services.tasks import TaskService
from oncue.errors import TooLarge
from oncue.log import Record
from oncue.protocol import api as r
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION, Cancel
from oncue.protocol.topics import CONTROL, RESULTS
from oncue.task_lifecycle import State, TaskState

MAX_CANCEL = 10_000


class CancellationService:
    """Cancels tasks of all endpoints."""

    def __init__(
        self,
        context: ServerContext,
        tasks: TaskService,
        bridge: BridgeSocket,
        ownership: PartitionOwnership,
        peers: PeerClient,
    ) -> None:
        self._context, self._tasks, self._bridge = context, tasks, bridge
        self._ownership, self._peers = ownership, peers

    async def cancel(self, caller: Caller, request: r.CancelRequest, bearer: str = "") -> list[str]:
        """Request the cancellation of open tasks. Return the ids of those requested.

        With `waiting`, only tasks that were not sent to their endpoint are cancelled. Then the ids
        are of tasks that will not run. The first closing record of a task decides. Raises TooLarge,
        NotFound, Invalid.
        """
        if len(request.tasks) > MAX_CANCEL:
            raise TooLarge(
                f"{len(request.tasks):,} tasks are too many for one request", remedy=f"ask for {MAX_CANCEL:,}"
            )
        states = await self._tasks.visible_states(caller, request.tasks)
        return await self.cancel_states(caller, states, waiting=request.waiting, bearer=bearer)

    async def cancel_states(
        self, caller: Caller, states: Sequence[TaskState], *, waiting: bool = False, bearer: str = ""
    ) -> list[str]:
        """Request the cancellation of those that are open, as `cancel` does."""
        wanted = [s for s in states if not s.state.closed and s.call is not None]
        cancelled: list[bytes] = []
        if waiting:
            cancelled = [s.id for s in states if s.state is State.CANCELLED]
            others, wanted = await self._cancel_waiting(caller, wanted, bearer)
            cancelled += others
        else:
            await self._record(caller, wanted)
        await self._context.barrier((CONTROL,))
        if not self._context.log.shared:
            for endpoint, ids in _by_endpoint(wanted).items():
                self.apply(Cancel(VERSION, endpoint, tuple(ids), caller.subject))
        return [i.hex() for i in (*cancelled, *(s.id for s in wanted))]

    async def _cancel_waiting(
        self, caller: Caller, wanted: list[TaskState], bearer: str
    ) -> tuple[list[bytes], list[TaskState]]:
        """Return (ids cancelled before or by peers, held tasks now being cancelled)."""
        elsewhere = self._by_server(wanted)
        held = self._hold(wanted)
        try:
            closed = await self._closed_meanwhile([s.id for s in held])
            cancelled = [i for i, state in closed.items() if state is State.CANCELLED]
            wanted = [s for s in held if s.id not in closed]
            await self._record(caller, wanted)
            # Another server that owns the endpoint by now may have sent some of them before.
            wanted = [s for s in wanted if s.call is not None and self._ownership.is_exclusive(s.call.endpoint)]
        except BaseException:
            self._release(held)
            raise
        requests = [self._peers.cancel_waiting(url, ids, bearer) for url, ids in elsewhere.items()]
        cancelled += [i for ids in await asyncio.gather(*requests) for i in ids]
        return cancelled, wanted

    def apply(self, entry: Cancel) -> None:
        """Apply a Cancel record that the view has, if the channel is here."""
        why = f"cancelled by {entry.by}"
        self._bridge.with_channel(entry.endpoint, partial(EndpointChannel.cancel, ids=entry.tasks, why=why))

    def _by_server(self, states: Sequence[TaskState]) -> dict[str, list[bytes]]:
        """Return the tasks of other servers, by the URL of the server."""
        found: dict[str, list[bytes]] = {}
        for endpoint, ids in _by_endpoint(states).items():
            if url := self._ownership.owner_url(endpoint):
                found.setdefault(url, []).extend(ids)
        return found

    async def _record(self, caller: Caller, states: Sequence[TaskState]) -> None:
        """Append Cancel records; durable on return."""
        at = now_us()
        for endpoint, ids in _by_endpoint(states).items():
            entry = Cancel(VERSION, endpoint, tuple(ids), caller.subject, at)
            await self._context.log.append(CONTROL, [Record(encode(entry), key=endpoint.encode())])

    def _hold(self, states: Sequence[TaskState]) -> list[TaskState]:
        """Hold tasks that are certainly pending here, so that they are not sent.

        Return those tasks.
        """
        held: list[TaskState] = []
        for state in states:
            channel = self._bridge.channels.get(state.call.endpoint) if state.call else None
            if channel is None or state.running[0] == state.attempt:
                continue
            if not channel.inventory_known and (
                self._context.log.shared or not self._context.is_new(state.accepted_us)
            ):
                continue  # the agent may have it from before this server's start
            if not self._ownership.is_exclusive(channel.endpoint):
                continue
            if channel.hold(state.id):
                held.append(state)
        return held

    def _release(self, states: Sequence[TaskState]) -> None:
        for endpoint, ids in _by_endpoint(states).items():
            self._bridge.with_channel(endpoint, partial(EndpointChannel.release, ids=ids))

    async def _closed_meanwhile(self, ids: Sequence[bytes]) -> dict[bytes, State]:
        """Return the tasks that ended just before they were held."""
        await self._context.barrier((RESULTS,))
        return {i: state for i, (state, _) in (await self._context.view.states(ids)).items() if state.closed}


def _by_endpoint(states: Sequence[TaskState]) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for state in states:
        if state.call is not None:
            found.setdefault(state.call.endpoint, []).append(state.id)
    return found
