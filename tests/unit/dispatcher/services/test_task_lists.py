"""TaskListService and RetryService: pages, counts, short ids; cancels and retries of many tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from oncue import ids
from oncue.dispatcher.services.many_tasks.retries import RetryService
from oncue.errors import Conflict, Forbidden, Invalid, NotFound
from oncue.protocol import api as r
from oncue.protocol.records import ERROR, LOST, OK, Call, Ended
from oncue.view import TaskFilter
from tests.unit.dispatcher.services.rule_site import RuleSite, rule_file, rule_text, with_rules
from tests.unit.dispatcher.services.service_site import ADA, ADMIN, BOB, Site, with_site
from tests.unit.dispatcher.services.test_tasks import batch, frames, lists, service


class Retries:
    """The services of retries on a site."""

    def __init__(self, site: RuleSite) -> None:
        self.site, self.rules = site.site, site
        self.tasks = service(site.site)
        self.lists = lists(site.site)
        self.retries = RetryService(site.context, self.tasks, self.lists, site.deployed)

    async def one(self, task: bytes, caller: object = ADA, same_version: bool = False) -> r.TaskInfo:
        request = r.RetryOneRequest(same_version=same_version)
        return await self.retries.retry_one(caller, task.hex(), request)  # type: ignore[arg-type]

    async def many(self, **fields: object) -> r.Retried:
        return await self.retries.retry(ADA, r.RetryRequest(**fields))  # type: ignore[arg-type]

    async def failed(self, count: int, **fields: object) -> list[bytes]:
        e = await self.site.add_endpoint()
        made = [await self.site.add_task(e, **fields) for _ in range(count)]  # type: ignore[arg-type]
        for task in made:
            await self.site.end_task(task, ERROR)
        return made

    async def calls(self) -> list[tuple[Call, bytes]]:
        """Return (call, id of the old task) of each retry in the log."""
        return [(f.call, t.retry_of) for f in await frames(self.site, "ep_ada_local") for t in f.tasks if t.retry_of]


def with_retries(folder: Path, work: Callable[[Retries], Awaitable[None]]) -> None:
    async def with_services(site: RuleSite) -> None:
        await work(Retries(site))

    with_rules(folder, with_services)


# ---------------------------------------------------------------- lists


def test_a_list_is_filtered_by_endpoint_and_state(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        tasks, one, two = lists(site), await site.add_endpoint("one"), await site.add_endpoint("two")
        closed, waiting, other = await site.add_task(one), await site.add_task(one), await site.add_task(two)
        await site.end_task(closed)
        found = {
            name: [t.id for t in (await tasks.page(ADA, query)).items]
            for name, query in {
                "one": TaskFilter(endpoint="one"),
                "open": TaskFilter(state="open"),
                "closed": TaskFilter(state="closed"),
            }.items()
        }
        assert found["one"] == [waiting.hex(), closed.hex()]
        assert found["open"] == [other.hex(), waiting.hex()]
        assert found["closed"] == [closed.hex()]
        with pytest.raises(NotFound):
            await tasks.page(ADA, TaskFilter(endpoint="three"))

    with_site(tmp_path, work)


def test_a_list_has_short_ids_by_which_each_task_is_found(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        e, _ = await site.add_endpoint(), await site.add_function()
        await service(site).submit_batch(ADA, batch(1, 2, 3))
        await site.add_task(e)
        await site.add_task(await site.add_endpoint(owner="bob"), "bob")
        await site.context.barrier(service(site).topics())
        items = (await lists(site).page(ADA, TaskFilter())).items
        assert len(items) == 4
        assert all(len(t.short) < 24 for t in items)
        for t in items:
            for text in (t.short, t.id, t.id[:20] + "..." + t.id[20:]):
                assert [f.id for f in (await lists(site).find(ADA, text, 10)).items] == [t.id]
            assert (await lists(site).find(BOB, t.short, 10)).items == []
            assert [f.id for f in (await lists(site).find(ADMIN, t.short, 10)).items] == [t.id]
        several = await lists(site).find(ADA, items[0].id[:5], 10)  # one time: all of them, newest first
        assert {t.id for t in several.items} == {t.id for t in items}
        for wrong in ("012", "xyz1", "0" * 33, "..0001"):
            with pytest.raises(Invalid):
                await lists(site).find(ADA, wrong, 10)

    with_site(tmp_path, work)


def test_tasks_of_a_period_are_listed_and_counted(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        e, found = await site.add_endpoint(), lists(site)
        tasks = [await site.add_task(e) for _ in range(5)]
        times = [(await service(site).get(ADA, t.hex())).accepted_us for t in tasks]
        some = TaskFilter(since_us=times[1], until_us=times[4])
        assert [t.id for t in (await found.page(ADA, some)).items] == [t.hex() for t in reversed(tasks[1:4])]
        assert await found.count(ADA, some) == r.TaskCount(count=3)
        assert await found.count(BOB, some) == r.TaskCount(count=0)

    with_site(tmp_path, work)


def test_open_tasks_that_a_filter_selects_are_cancelled_page_by_page(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        one, two = await site.add_endpoint("one"), await site.add_endpoint("two")
        tasks, other = [await site.add_task(one) for _ in range(5)], await site.add_task(two)
        closed = await site.add_task(one)
        await site.end_task(closed)
        found, cancelled, cursor = lists(site), [], ""
        while cursor is not None:
            request = r.CancelRequest(filter=r.TaskSelection(endpoint="one"), cursor=cursor, limit=2)
            ids_, cursor = await found.cancel_page(ADA, request, "")
            cancelled += ids_
        assert sorted(cancelled) == sorted(t.hex() for t in tasks)
        assert [t.id for t in (await found.page(ADA, TaskFilter(state="waiting"))).items] == [other.hex()]
        with pytest.raises(Invalid, match="either"):
            await found.cancel_page(ADA, r.CancelRequest(tasks=["1"], filter=r.TaskSelection()), "")

    with_site(tmp_path, work)


# ---------------------------------------------------------------- retries


def test_a_retry_is_a_new_task_that_names_the_old_one(tmp_path: Path) -> None:
    async def work(made: Retries) -> None:
        e = await made.site.add_endpoint()
        old = await made.site.add_task(e, stream="s", expires_us=1)
        with pytest.raises(Conflict, match="still open"):
            await made.one(old)
        await made.site.end_task(old, ERROR)
        info = await made.one(old)
        frame = (await frames(made.site, e.id))[-1]
        assert info.retry_of == old.hex()
        assert (frame.tasks[0].id.hex(), frame.tasks[0].retry_of) == (info.id, old)
        assert (frame.call.stream, frame.call.expires_us) == ("", 0)
        await made.site.context.barrier(made.tasks.topics())
        assert (await made.tasks.get(ADA, old.hex())).replaced_by == info.id
        (listed,) = [t for t in (await made.lists.page(ADA, TaskFilter())).items if t.id == old.hex()]
        assert listed.replaced_by == info.id
        assert (await made.one(old)).id != info.id  # a person may ask for it again

    with_retries(tmp_path, work)


def test_a_task_of_another_or_of_a_revoked_endpoint_is_not_retried(tmp_path: Path) -> None:
    async def work(made: Retries) -> None:
        site, e = made.site, await made.site.add_endpoint()
        task = await site.add_task(e)
        await site.end_task(task, ERROR)
        with pytest.raises(NotFound):
            await made.one(task, BOB)
        await site.context.record([(f"endpoint:{e.id}", msgspec.structs.replace(e, revoked=True))])
        with pytest.raises(Forbidden, match="was revoked"):
            await made.one(task)
        answer = await made.many(tasks=[task.hex()])
        assert answer.tasks == []
        assert "was revoked" in answer.refused[task.hex()]

    with_retries(tmp_path, work)


def test_a_task_whose_arguments_retention_has_deleted_is_not_retried(tmp_path: Path) -> None:
    async def work(made: Retries) -> None:
        e = await made.site.add_endpoint()
        state = await made.site.view.task(await made.site.add_task(e))
        assert state is not None
        lost = ids.new_uuid7()
        await made.site.append_result(state.call, Ended(lost, 1, OK))
        with pytest.raises(Conflict, match="not in the log any more"):
            await made.one(lost)

    with_retries(tmp_path, work)


def test_a_filter_retries_each_failed_task_once_however_often_it_is_sent(tmp_path: Path) -> None:
    async def work(made: Retries) -> None:
        failed = await made.failed(5)
        fine = await made.site.add_task(await made.site.add_endpoint())
        await made.site.end_task(fine)
        selection = r.TaskSelection(endpoint="local")
        dry = await made.many(filter=selection, dry_run=True)
        assert len(dry.tasks) == 5
        assert not any(t.id for t in dry.tasks)
        assert await made.calls() == []
        first = await made.many(filter=selection, limit=2)  # its sender dies after the first page
        assert len(first.tasks) == 2
        assert first.next
        both = await asyncio.gather(made.many(filter=selection), made.many(filter=selection))
        assert {t.id for t in both[0].tasks} == {t.id for t in both[1].tasks}
        assert len(both[0].tasks) == 3
        assert sorted(old for _, old in await made.calls()) == sorted(failed)
        assert (await made.many(filter=selection)).tasks == []
        again = await made.many(filter=selection, again=True, key=ids.new_uuid7().hex())
        assert len(again.tasks) == 5

    with_retries(tmp_path, work)


def test_the_same_key_makes_the_same_retries(tmp_path: Path) -> None:
    async def work(made: Retries) -> None:
        tasks = [t.hex() for t in await made.failed(2)]
        for key in (ids.new_uuid7().hex(), "mine"):
            once, twice = await made.many(tasks=tasks, key=key), await made.many(tasks=tasks, key=key)
            assert [t.id for t in once.tasks] == [t.id for t in twice.tasks]
        assert len(await made.calls()) == 4

    with_retries(tmp_path, work)


def test_tasks_or_a_filter_are_named(tmp_path: Path) -> None:
    async def work(made: Retries) -> None:
        for wrong in ({}, {"tasks": ["0" * 32], "filter": r.TaskSelection()}):
            with pytest.raises(Invalid, match="either"):
                await made.many(**wrong)

    with_retries(tmp_path, work)


def test_a_retry_runs_the_newest_version_of_its_function_from_the_same_file(tmp_path: Path) -> None:
    async def work(made: Retries) -> None:
        one = await made.site.add_function("f", result=1)
        two = await made.site.add_function("f", result=2)
        (task,) = await made.failed(1, function=one.id)
        info = await made.one(task)
        assert (info.function, info.version) == (two.id, 2)
        same = await made.one(task, same_version=True)
        assert (same.function, same.version) == (one.id, 1)
        (listed,) = (await made.many(tasks=[task.hex()])).tasks
        assert (listed.version, listed.old_version, listed.state) == (2, 1, "failed")
        await made.site.add_function("f", result=3, file="other.py")  # a stranger of the same name
        assert (await made.one(task)).version == 2

    with_retries(tmp_path, work)


def test_lambdas_have_one_name_and_no_versions(tmp_path: Path) -> None:
    async def work(made: Retries) -> None:
        one = await made.site.add_function("<lambda>", result=1)
        await made.site.add_function("<lambda>", result=2)
        (task,) = await made.failed(1, function=one.id, name="<lambda>")
        assert (await made.one(task)).function == one.id

    with_retries(tmp_path, work)


def test_a_retry_of_a_rules_task_runs_what_the_rule_runs_now(tmp_path: Path) -> None:
    async def work(made: Retries) -> None:
        one = await made.site.add_function("f", result=1)
        other = await made.site.add_endpoint("other")
        (task,) = await made.failed(1, function=one.id, rule="reconstruct", rule_version=1, timeout_ms=5)
        two = await made.site.add_function("f", result=2)
        text = rule_text().replace("endpoint: local}", "endpoint: other, timeout: 10s}")
        await made.rules.deployments.deploy(ADA, r.DeployRequest(files=[rule_file(text)], functions={"f": two.id}))
        await made.site.add_function("f", result=3)  # not deployed
        await made.one(task)
        (frame,) = await frames(made.site, other.id)
        assert (frame.call.function, frame.call.rule, frame.call.timeout_ms) == (two.id, "reconstruct", 10_000)
        same = await made.one(task, same_version=True)
        assert (same.function, same.endpoint, same.timeout_ms) == (one.id, "local", 5)

    with_retries(tmp_path, work)


def test_lost_tasks_are_retried_and_succeeded_ones_are_not(tmp_path: Path) -> None:
    async def work(made: Retries) -> None:
        e = await made.site.add_endpoint()
        lost, fine = await made.site.add_task(e), await made.site.add_task(e)
        await made.site.end_task(lost, LOST)
        await made.site.end_task(fine)
        assert [t.retry_of for t in (await made.many(filter=r.TaskSelection())).tasks] == [lost.hex()]
        named = await made.many(filter=r.TaskSelection(state="succeeded"))
        assert [t.retry_of for t in named.tasks] == [fine.hex()]

    with_retries(tmp_path, work)
