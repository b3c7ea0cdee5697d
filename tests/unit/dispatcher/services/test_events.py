"""EventService: events are stored as given, but for reserved attributes, and shown with the tasks of their reader."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from oncue.dispatcher.services.events import EventService
from oncue.errors import Invalid, NotFound, NotReady, TooLarge
from oncue.protocol.records import STORED_EVENT_BYTES, Event
from oncue.view import EventFilter
from tests.unit.dispatcher.services.service_site import ADA, ADMIN, BOB, Site, with_site


def event(number: int, **fields: Any) -> Event:
    return Event(**{"id": str(number), "source": "/beamline", "type": "scan", "data": {"n": number}, **fields})


def test_events_are_listed_newest_first_by_any_reader(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        events = EventService(site.context)
        emitted = await events.emit(ADA, [event(1), event(2), event(3, type="other")])
        await site.context.wait_for(emitted.position)
        page = await events.page(BOB, EventFilter(type="scan", limit=1))
        rest = await events.page(BOB, EventFilter(type="scan", cursor=page.next or ""))
        assert (emitted.count, emitted.id) == (3, "")
        assert [i.event["id"] for i in (*page.items, *rest.items)] == ["2", "1"]
        assert rest.next is None

    with_site(tmp_path, work)


@pytest.mark.parametrize("mode", ["structured", "binary"])
def test_reserved_attributes_of_a_caller_are_removed(tmp_path: Path, mode: str) -> None:
    async def work(site: Site) -> None:
        events = EventService(site.context)
        await events.emit(ADA, [event(1, extensions={"oncuedepth": 9, "run": "a"})])
        stored = (await events.get(ADA, 0)).event
        assert stored["run"] == "a"
        assert "oncuedepth" not in stored

    with_site(tmp_path, work, events_mode=mode)


def test_no_sender_and_no_trigger_tells_the_outcome_of_a_task(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        events = EventService(site.context)
        forged = event(1, source="/oncue/tasks", id="0" * 32)
        for told in (lambda: events.emit(ADA, [event(2), forged]), lambda: events.append([forged])):
            with pytest.raises(Invalid, match="outcomes"):
                await told()
        assert (await events.count(ADA, EventFilter())).count == 0

    with_site(tmp_path, work)


def test_an_event_is_found_as_soon_as_it_is_durable(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        events = EventService(site.context)
        emitted = await events.emit(ADA, [event(7)])
        assert emitted.id == "7"
        assert (await events.get(BOB, 0)).event["data"] == {"n": 7}
        with pytest.raises(NotFound, match="offset 1"):
            await events.get(BOB, 1)

    with_site(tmp_path, work)


def test_tasks_that_an_event_caused_are_shown_to_their_owner_only(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        events, e = EventService(site.context), await site.add_endpoint()
        await events.emit(BOB, [event(1)])
        task = await site.add_task(e, rule="reconstruct", event=("/beamline", "1"))
        shown = {}
        for caller in (ADA, BOB, ADMIN):
            info = await events.get(caller, 0)
            shown[caller.subject] = (info.fired, info.tasks)
        fired = (["reconstruct"], [task.hex()])
        assert shown == {"ada": fired, "bob": ([], []), "root": fired}

    with_site(tmp_path, work)


def test_of_events_of_which_one_is_too_large_none_is_stored(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        events = EventService(site.context)
        with pytest.raises(TooLarge, match="bytes"):
            await events.emit(ADA, [event(1), event(2, data="x" * STORED_EVENT_BYTES)])
        assert await site.log.end_offsets(["oncue.events"]) == {("oncue.events", 0): 0}
        site.context.ready = False
        with pytest.raises(NotReady):
            await events.emit(ADA, [event(1)])

    with_site(tmp_path, work)


def test_a_live_feed_leaves_out_what_belongs_to_others(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        feed = EventService(site.context).live(ADA, frozenset({"task"}))
        assert await anext(feed) == ("", None)
        following = asyncio.ensure_future(anext(feed))
        await asyncio.sleep(0)
        site.notifier.publish_item("task", {"id": "1", "owner": "bob"})
        site.notifier.publish_item("task", {"id": "2"})
        site.notifier.publish_item("event", {"id": "2"})
        site.notifier.publish_item("task", {"id": "3", "owner": "ada"})
        assert await following == ("task", {"id": "3", "owner": "ada"})
        await feed.aclose()

    with_site(tmp_path, work)
