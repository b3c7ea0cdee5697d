"""CancellationService: cancel requests are durable; tasks that are pending can be cancelled for certain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from oncue import ids
from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.dispatcher.bridge.effects import EndWaitingTasks
from oncue.dispatcher.services.cancellation import MAX_CANCEL, CancellationService
from oncue.dispatcher.services.tasks import TaskService
from oncue.errors import LogError, NotFound, TooLarge
from oncue.protocol import api as r
from oncue.protocol.codec import decode
from oncue.protocol.records import VERSION, Cancel, EndpointRecord, TaskFrame
from oncue.protocol.topics import CONTROL
from oncue.task_lifecycle import State
from tests.unit.dispatcher.services.service_site import ADA, BOB, Site, with_site

PEER = "http://peer:1"


def service(site: Site) -> CancellationService:
    tasks = TaskService(site.context, site.bridge, site.ownership, site.peers)
    return CancellationService(site.context, tasks, site.bridge, site.ownership, site.peers)


def request(*tasks: bytes, waiting: bool = False) -> r.CancelRequest:
    return r.CancelRequest(tasks=[t.hex() for t in tasks], waiting=waiting)


async def requested(site: Site) -> list[Cancel]:
    """Return the Cancel records of the log."""
    if not any((await site.log.end_offsets([CONTROL])).values()):
        return []
    batches = await site.log.read([CONTROL], start="earliest").next()
    return [decode(Cancel, record.value) for batch in batches for record in batch.records]


async def add_pending(site: Site, e: EndpointRecord) -> bytes:
    """Add a task that is pending in its channel."""
    task = await site.add_task(e)
    topic = site.context.registry.tasks_topic(e.id)
    batch = (await site.log.read([topic], start="earliest").next())[-1]
    record = batch.records[-1]
    site.bridge.channels[e.id].add_tasks(decode(TaskFrame, record.value), len(record.value), batch.offsets[-1])
    return task


def ended_by(channel: EndpointChannel) -> list[bytes]:
    """Return the pending tasks that the channel was asked to end."""
    return [i for effect in channel.drain() if isinstance(effect, EndWaitingTasks) for i in effect.ids]


def test_a_cancel_request_is_recorded_and_reaches_the_channel(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        e = await site.add_endpoint()
        channel = site.bridge.open(e.id)
        opened, closed = await site.add_task(e), await site.add_task(e)
        await site.end_task(closed)
        assert await service(site).cancel(ADA, request(opened, closed)) == [opened.hex()]
        (record,) = await requested(site)
        assert (record.endpoint, record.tasks, record.by) == (e.id, (opened,), "ada")
        assert ended_by(channel) == [opened]
        state = await site.view.task(opened)
        assert state is not None
        assert state.cancel_by == "ada"

    with_site(tmp_path, work)


def test_in_a_shared_log_the_record_reaches_the_channel_by_the_log(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        e = await site.add_endpoint()
        channel, cancellation = site.bridge.open(e.id), service(site)
        task = await site.add_task(e)
        await cancellation.cancel(ADA, request(task))
        assert ended_by(channel) == []
        cancellation.apply(Cancel(VERSION, e.id, (task,), "bob"))
        cancellation.apply(Cancel(VERSION, "of another server", (task,), "bob"))
        assert ended_by(channel) == [task]

    with_site(tmp_path, work, shared=True)


def test_if_one_task_is_not_the_callers_none_is_cancelled(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        e = await site.add_endpoint()
        own, other = await site.add_task(e), await site.add_task(e, "bob")
        for unknown in (other, ids.new_uuid7()):
            with pytest.raises(NotFound):
                await service(site).cancel(ADA, request(own, unknown))
        with pytest.raises(TooLarge):
            await service(site).cancel(ADA, r.CancelRequest(tasks=[own.hex()] * (MAX_CANCEL + 1)))
        assert await requested(site) == []
        assert await service(site).cancel(BOB, request(other)) == [other.hex()]

    with_site(tmp_path, work)


def test_waiting_cancels_what_is_pending_and_leaves_what_may_be_sent(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        e = await site.add_endpoint()
        channel = site.bridge.open(e.id)
        pending, at_agent = await add_pending(site, e), await site.add_task(e)
        channel.at_agent = lambda task: task == at_agent
        assert await service(site).cancel(ADA, request(pending, at_agent, waiting=True)) == [pending.hex()]
        assert [c.tasks for c in await requested(site)] == [(pending,)]

    with_site(tmp_path, work)


def test_waiting_answers_with_tasks_that_are_cancelled_already(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        e = await site.add_endpoint()
        task = await site.add_task(e)
        await site.end_task(task, status=4)
        state = await site.view.task(task)
        assert state is not None
        assert state.state is State.CANCELLED
        assert await service(site).cancel(ADA, request(task, waiting=True)) == [task.hex()]
        assert await service(site).cancel(ADA, request(task)) == []
        assert await requested(site) == []

    with_site(tmp_path, work)


def test_a_task_that_ends_while_it_is_held_is_not_cancelled(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        e = await site.add_endpoint()
        channel = site.bridge.open(e.id)
        task = await add_pending(site, e)
        hold = channel.hold

        def hold_late(task_id: bytes) -> bool:
            held = hold(task_id)
            ending.append(site.end_task(task_id))
            return held

        ending: list[Any] = []
        channel.hold = hold_late
        cancellation = service(site)
        closed_meanwhile = cancellation._closed_meanwhile

        async def after_the_end(ids: Any) -> Any:
            await ending.pop()
            return await closed_meanwhile(ids)

        cancellation._closed_meanwhile = after_the_end  # type: ignore[method-assign]
        assert await cancellation.cancel(ADA, request(task, waiting=True)) == []
        assert await requested(site) == []

    with_site(tmp_path, work)


def test_held_tasks_are_released_if_the_request_fails(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        e = await site.add_endpoint()
        channel = site.bridge.open(e.id)
        task = await add_pending(site, e)
        cancellation = service(site)

        async def failing(*args: Any) -> None:
            assert task in channel.pending.stopped
            raise LogError("the log cannot be written")

        cancellation._record = failing  # type: ignore[method-assign]
        with pytest.raises(LogError):
            await cancellation.cancel(ADA, request(task, waiting=True))
        assert task not in channel.pending.stopped

    with_site(tmp_path, work)


def test_pending_tasks_of_another_server_are_cancelled_there(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        e = await site.add_endpoint()
        site.ownership.elsewhere[e.id] = PEER
        one, two = await site.add_task(e), await site.add_task(e)
        site.peers.answers["cancel_waiting", PEER] = [two]
        assert await service(site).cancel(ADA, request(one, two, waiting=True), "Bearer t") == [two.hex()]
        assert site.peers.requests == [("cancel_waiting", PEER, one, two)]
        assert await requested(site) == []

    with_site(tmp_path, work)


def test_a_server_that_may_have_lost_the_endpoint_promises_nothing(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        e = await site.add_endpoint()
        site.bridge.open(e.id)
        task = await add_pending(site, e)
        site.ownership.exclusive = False
        assert await service(site).cancel(ADA, request(task, waiting=True)) == []

    with_site(tmp_path, work)
