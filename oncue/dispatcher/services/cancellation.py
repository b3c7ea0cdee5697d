"""Cancels: of tasks wherever they are, or only of those that have not been sent to their endpoint.

    cancel           ──Cancel record──► durable ──► lane: asks the agent, or ends what waits
    cancel (waiting) ──lane holds back──► still open? ──► as above, for those alone
                     └─another server acts for them──► asked, once a server (peers.py)

An executor's future may be cancelled unless its call runs (concurrent.futures): so the question whether a task waits and the
word that it shall not be sent are one step of its lane.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.dispatcher.context import READ_OWN_WRITES_S
from oncue.dispatcher.services.tasks import TaskDesk, parse_id
from oncue.errors import TooLarge
from oncue.ids import now_us
from oncue.lifecycle import State, TaskState
from oncue.log import Record
from oncue.protocol import api as r
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION, Cancel
from oncue.protocol.topics import CONTROL, RESULTS

MAX_CANCEL = 10_000


class CancelDesk(TaskDesk):
    async def cancel(self, who: Caller, request: r.CancelRequest, bearer: str = "") -> list[str]:
        """Asks for a cancel of those of the tasks that are open; the first closing record decides. Returns their ids.

        `waiting`: only of those that have not been sent to their endpoint. Returns the ids of those that will not run
        (any more); the others are left as they are."""
        if len(request.tasks) > MAX_CANCEL:
            raise TooLarge(
                f"{len(request.tasks):,} tasks are too many for one request", remedy=f"ask for {MAX_CANCEL:,}"
            )
        states = await self._all_mine(who, request.tasks)
        told = [s.id for s in states if request.waiting and s.state is State.CANCELLED]
        wanted = [s for s in states if not s.state.closed and s.call is not None]
        if request.waiting:
            elsewhere = self._by_server(wanted)
            held = self._hold_back(wanted)
            try:
                closed = await self._closed_meanwhile([s.id for s in held])
                told += [i for i, state in closed.items() if state is State.CANCELLED]
                wanted = [s for s in held if s.id not in closed]
                await self._record(who, wanted)
                # Where another server may act by now, it may have sent some before it read of the wish.
                wanted = [s for s in wanted if s.call is not None and self.owners.is_exclusive(s.call.endpoint)]
            except BaseException:
                self._release(held)
                raise
            asked = [self.across.cancel_waiting(url, ids, bearer) for url, ids in elsewhere.items()]
            told += [i for ids in await asyncio.gather(*asked) for i in ids]
        else:
            await self._record(who, wanted)
        await self.barrier((CONTROL,))
        if not self.log.shared:
            for endpoint, ids in _by_endpoint(wanted).items():
                self.cancel_here(Cancel(VERSION, endpoint, tuple(ids), who.subject))
        return [i.hex() for i in (*told, *(s.id for s in wanted))]

    def cancel_here(self, wish: Cancel) -> None:
        """The view has it: where this server acts for the endpoint, it happens. (A log that is shared brings it back.)"""
        why = f"cancelled by {wish.by}"
        self.bridge.with_channel(wish.endpoint, partial(EndpointChannel.cancel, ids=wish.tasks, why=why))

    async def _all_mine(self, who: Caller, texts: Sequence[str]) -> list[TaskState]:
        """As `_mine`, but with one look for all of them."""
        ids = [parse_id(text) for text in texts]
        found = await self.view.tasks_of(ids)
        if any(i not in found for i in ids):
            await self.barrier(await self._task_topics())
        elif any(not s.state.closed for s in found.values()):
            await self.view.wait_for(await self.log.end_offsets((RESULTS,)), READ_OWN_WRITES_S)
        found |= await self.view.tasks_of([i for i in ids if i not in found or not found[i].state.closed])
        return [self._owned(who, found.get(i), text) for i, text in zip(ids, texts, strict=True)]

    def _by_server(self, states: Sequence[TaskState]) -> dict[str, list[bytes]]:
        """Those of endpoints for which another server acts, by its API."""
        found: dict[str, list[bytes]] = {}
        for endpoint, ids in _by_endpoint(states).items():
            if url := self.owners.owner_url(endpoint):
                found.setdefault(url, []).extend(ids)
        return found

    async def _record(self, who: Caller, states: Sequence[TaskState]) -> None:
        """The wish becomes durable."""
        at = now_us()
        for endpoint, ids in _by_endpoint(states).items():
            entry = Cancel(VERSION, endpoint, tuple(ids), who.subject, at)
            await self.log.append(CONTROL, [Record(encode(entry), key=endpoint.encode())])

    def _hold_back(self, states: Sequence[TaskState]) -> list[TaskState]:
        """Those that surely wait here; they will not be sent."""
        held: list[TaskState] = []
        for state in states:
            channel = self.bridge.channels.get(state.call.endpoint) if state.call else None
            if channel is None or state.running[0] == state.attempt:
                continue
            if not channel.inventory_known and (self.log.shared or state.accepted_us < self.started_us):
                continue  # the agent may have it from before this server's time
            if not self.owners.is_exclusive(channel.endpoint):
                continue
            if channel.hold(state.id):
                held.append(state)
        return held

    def _release(self, states: Sequence[TaskState]) -> None:
        for endpoint, ids in _by_endpoint(states).items():
            self.bridge.with_channel(endpoint, partial(EndpointChannel.release, ids=ids))

    async def _closed_meanwhile(self, ids: Sequence[bytes]) -> dict[bytes, State]:
        """What ended just before it was held back, perhaps told to streams before the view had it."""
        await self.barrier((RESULTS,))
        return {i: state for i, (state, _) in (await self.view.states(ids)).items() if state.closed}


def _by_endpoint(states: Sequence[TaskState]) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for state in states:
        if state.call is not None:
            found.setdefault(state.call.endpoint, []).append(state.id)
    return found
