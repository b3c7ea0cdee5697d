"""TaskService: submission with and without keys, look-up, waiting and output."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from oncue import ids
from oncue.clocks.process import now_ms
from oncue.dispatcher.services.cancellation import CancellationService
from oncue.dispatcher.services.many_tasks.lists import TaskListService
from oncue.dispatcher.services.tasks import TaskService
from oncue.errors import Conflict, Invalid, NotFound, NotReady, TooLarge
from oncue.log import Record
from oncue.protocol import api as r
from oncue.protocol import payload
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import ERROR, INLINE_BYTES, VERSION, TaskFrame
from oncue.protocol.reports import Output
from oncue.protocol.topics import REPORTS
from oncue.view import TaskFilter
from tests.unit.dispatcher.services.service_site import ADA, ADMIN, BOB, Site, with_site

PEER = "http://peer:1"


def service(site: Site) -> TaskService:
    return TaskService(site.context, site.bridge, site.ownership, site.peers)


def lists(site: Site) -> TaskListService:
    tasks = service(site)
    cancellation = CancellationService(site.context, tasks, site.bridge, site.ownership, site.peers)
    return TaskListService(site.context, tasks, cancellation)


async def frames(site: Site, endpoint: str) -> list[TaskFrame]:
    """Return the task records of an endpoint."""
    topic = site.context.registry.tasks_topic(endpoint)
    if not any((await site.log.end_offsets([topic])).values()):
        return []
    batches = await site.log.read([topic], start="earliest").next()
    return [decode(TaskFrame, record.value) for batch in batches for record in batch.records]


def batch(*numbers: int, key: str = "", **fields: Any) -> r.BatchRequest:
    return r.BatchRequest(function="f", key=key, calls=[([n], {}) for n in numbers], **fields)


# ---------------------------------------------------------------- submit


def test_a_batch_is_durable_when_it_is_accepted(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        tasks, e, f = service(site), await site.add_endpoint(), await site.add_function()
        retry = r.RetryPolicy(max=2, on=["lost"])
        accepted = await tasks.submit_batch(ADA, batch(1, 2, timeout_ms=500, stream="s", retry=retry))
        (frame,) = await frames(site, e.id)
        call = frame.call
        assert (call.function, call.endpoint, call.owner, call.name) == (f.id, e.id, "ada", "f")
        assert (call.timeout_ms, call.stream, call.retry) == (500, "s", retry.stored())
        assert [payload.unpack_args(t.args) for t in frame.tasks] == [((1,), {}), ((2,), {})]
        assert (accepted.first, accepted.count) == (frame.tasks[0].id.hex(), 2)
        assert accepted.position == f"{site.context.registry.tasks_topic(e.id)}:0:1"

    with_site(tmp_path, work)


def test_a_batch_that_is_sent_again_with_its_key_gives_the_same_tasks(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        tasks, e, _ = service(site), await site.add_endpoint(), await site.add_function()
        request = batch(1, 2, key=ids.new_uuid7().hex())
        both = await asyncio.gather(tasks.submit_batch(ADA, request), tasks.submit_batch(ADA, request))
        later = await tasks.submit_batch(ADA, request)
        assert both[0] == both[1] == later
        assert len(await frames(site, e.id)) == 1

    with_site(tmp_path, work)


def test_a_key_of_an_earlier_process_is_known_from_the_view(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        e, _ = await site.add_endpoint(), await site.add_function()
        request = batch(1, 2, key=ids.new_uuid7(now_ms() - 60_000).hex())
        before = await service(site).submit_batch(ADA, request)
        after = await service(site).submit_batch(ADA, request)  # a service that has not seen the first request
        assert after.first == before.first
        assert len(await frames(site, e.id)) == 1
        with pytest.raises(Conflict, match="used before"):
            await service(site).submit_batch(ADA, msgspec.structs.replace(request, calls=[([9], {}), ([2], {})]))

    with_site(tmp_path, work)


def test_a_key_names_one_request(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        tasks, e, _ = service(site), await site.add_endpoint(), await site.add_function()
        key = ids.new_uuid7().hex()
        await tasks.submit_batch(ADA, batch(1, key=key))
        with pytest.raises(Conflict, match="used before"):
            await tasks.submit_batch(ADA, batch(2, key=key))
        await tasks.submit(ADA, r.TaskRequest(function="f", args=[1], key="run-1"))
        with pytest.raises(Conflict, match="used before"):
            await tasks.submit(ADA, r.TaskRequest(function="f", args=[2], key="run-1"))
        assert len(await frames(site, e.id)) == 2

    with_site(tmp_path, work)


def test_a_single_task_that_is_sent_again_shows_the_first(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        tasks, e, _ = service(site), await site.add_endpoint(), await site.add_function()
        request = r.TaskRequest(function="f", args=[1], key="run-1")
        first, again = await tasks.submit(ADA, request), await tasks.submit(ADA, request)
        restarted = await service(site).submit(ADA, request)
        assert first.id == again.id == restarted.id
        assert len(await frames(site, e.id)) == 1

    with_site(tmp_path, work)


def test_a_request_that_cannot_be_accepted_appends_nothing(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        tasks, e, _ = service(site), await site.add_endpoint(), await site.add_function()
        large = payload.pack_args((bytes(INLINE_BYTES + 9),), {})
        for wrong, error in (
            (batch(), Invalid),
            (batch(1, 2, 3, 4), Invalid),
            (batch(1, key="xyz"), Invalid),
            (batch(1, retry=r.RetryPolicy(max=1, on=["ok"])), Invalid),
            (batch(1, endpoint="nowhere"), NotFound),
            (r.BatchRequest(function="g", calls=[([], {})]), NotFound),
            (r.BatchRequest(function="f", payloads=[large]), TooLarge),
        ):
            with pytest.raises(error):
                await tasks.submit_batch(ADA, wrong)
        with pytest.raises(NotFound):
            await tasks.submit_batch(BOB, batch(1, endpoint=e.id))
        site.context.ready = False
        with pytest.raises(NotReady):
            await tasks.submit_batch(ADA, batch(1))
        assert await frames(site, e.id) == []

    with_site(tmp_path, work, max_batch=3)


def test_a_submit_can_wait_for_its_outcome(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        tasks, e, _ = service(site), await site.add_endpoint(), await site.add_function()
        request = r.TaskRequest(function="f", args=[1], key="k", wait_ms=20_000)
        waiting = asyncio.create_task(tasks.submit(ADA, request))
        task = ids.rule_task_ids("", "", "ada", "k", None, 1)[0]
        await site.view.wait_for({(site.context.registry.tasks_topic(e.id), 0): 1}, 20.0)
        await site.end_task(task, value=42)
        info = await waiting
        assert (info.state, info.value, info.why) == ("succeeded", 42, "")

    with_site(tmp_path, work)


# ---------------------------------------------------------------- look up


def test_a_task_is_shown_to_its_owner_and_admins(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        tasks, task = service(site), await site.add_task(await site.add_endpoint("laptop"))
        for caller in (ADA, ADMIN):
            info = await tasks.get(caller, task.hex())
            assert (info.id, info.state, info.endpoint) == (task.hex(), "waiting", "laptop")
            assert [t.id for t in (await lists(site).page(caller, TaskFilter())).items] == [task.hex()]
        with pytest.raises(NotFound):
            await tasks.get(BOB, task.hex())
        assert (await lists(site).page(BOB, TaskFilter(owner="ada"))).items == []
        with pytest.raises(Invalid):
            await tasks.get(ADA, "not an id")

    with_site(tmp_path, work)


def test_an_open_task_says_why_it_waits(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        tasks, e = service(site), await site.add_endpoint("laptop")
        task = (await site.add_task(e)).hex()
        assert (await tasks.get(ADA, task)).why == "no server acts for endpoint 'laptop' yet"
        site.ownership.elsewhere[e.id] = PEER
        assert f"the server {PEER} acts for endpoint 'laptop'" in (await tasks.get(ADA, task)).why
        site.bridge.open(e.id)
        assert "'laptop' is away, it has not come yet" in (await tasks.get(ADA, task)).why
        site.bridge.channels[e.id].refused = "revoked"
        assert (await tasks.get(ADA, task)).why == "endpoint 'laptop' is refused: revoked"

    with_site(tmp_path, work)


def test_only_the_owning_server_is_asked_and_only_for_open_tasks(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        tasks, e = service(site), await site.add_endpoint()
        site.ownership.elsewhere[e.id] = PEER
        opened, closed = await site.add_task(e), await site.add_task(e)
        await site.end_task(closed)
        for task in (opened, closed):
            await tasks.get(ADA, task.hex(), bearer="Bearer t")
            await tasks.get(ADA, task.hex())
        assert site.peers.requests == [("task", PEER, opened.hex())]

    with_site(tmp_path, work)


@pytest.mark.parametrize("ended_before", [True, False])
def test_a_look_up_can_wait_for_the_outcome(tmp_path: Path, ended_before: bool) -> None:
    async def work(site: Site) -> None:
        tasks, task = service(site), await site.add_task(await site.add_endpoint())
        if ended_before:
            await site.end_task(task, value="done")
        waiting = asyncio.create_task(tasks.get(ADA, task.hex(), wait_ms=20_000))
        await asyncio.sleep(0.05)
        if not ended_before:
            await site.end_task(task, value="done")
        info = await waiting
        assert (info.state, info.value) == ("succeeded", "done")

    with_site(tmp_path, work)


def test_a_look_up_that_waits_in_vain_shows_the_open_task(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        task = await site.add_task(await site.add_endpoint())
        assert (await service(site).get(ADA, task.hex(), wait_ms=10)).state == "waiting"

    with_site(tmp_path, work)


def test_outcomes_are_of_the_callers_closed_tasks(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        tasks, e = service(site), await site.add_endpoint()
        closed, opened, other = await site.add_task(e), await site.add_task(e), await site.add_task(e, "bob")
        for task in (closed, other):
            await site.end_task(task, value=3)
        (outcome,) = await tasks.outcomes(ADA, [closed, opened, other])
        assert (outcome.id, outcome.state, payload.unpack(outcome.ended.value)) == (closed, "succeeded", 3)
        waiting = asyncio.create_task(tasks.outcomes(ADA, [closed, opened], wait_ms=20_000))
        await asyncio.sleep(0.05)
        await site.end_task(opened, value=4)
        assert {o.id for o in await waiting} == {closed, opened}
        with pytest.raises(TooLarge):
            await tasks.outcomes(ADA, [closed] * 4)

    with_site(tmp_path, work, max_batch=3)


def test_a_timeline_has_the_failed_attempt_and_the_end(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        tasks, task = service(site), await site.add_task(await site.add_endpoint("laptop"))
        await site.end_task(task, ERROR)
        entries = await tasks.timeline(ADA, task.hex())
        assert {e.what: e.detail for e in entries} == {
            "accepted": "by ada, for endpoint laptop",
            "started": "attempt 1",
            "ended": "attempt 1: error",
        }
        with pytest.raises(NotFound):
            await tasks.timeline(BOB, task.hex())

    with_site(tmp_path, work)


# ---------------------------------------------------------------- output


def test_followed_output_ends_when_the_task_closes(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        tasks, e = service(site), await site.add_endpoint()
        task = await site.add_task(e)
        report = Output(VERSION, e.id, task, 1, 0, b"first ")
        await site.context.applied(await site.log.append(REPORTS, [Record(encode(report))]))
        assert [part async for part in tasks.logs(ADA, task.hex(), follow=False)] == [b"first "]
        parts = tasks.logs(ADA, task.hex(), follow=True)
        assert await anext(parts) == b"first "
        await site.end_task(task, output=b"first second")
        assert b"".join([part async for part in parts]) == b"second"

    with_site(tmp_path, work)
