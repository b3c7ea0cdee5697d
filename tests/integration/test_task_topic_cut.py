"""Truncation of a topic of tasks: open tasks survive.

This holds whichever endpoints share the topic.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock

import msgspec
import pytest

from oncue.config import Settings
from oncue.dispatcher.bridge.socket import BridgeSocket
from oncue.dispatcher.housekeeper import Housekeeper, TopicMark
from oncue.dispatcher.notifier import Notifier
from oncue.dispatcher.start_progress import StartProgress
from oncue.dispatcher.topics import server_topics
from oncue.dispatcher.view_consumer import ViewConsumer
from oncue.ids import batch_ids, new_uuid7
from oncue.log import Log, Record, open_log
from oncue.protocol.codec import encode
from oncue.protocol.records import OK, VERSION, Call, Ended, ResultFrame, TaskFrame, TaskRecord
from oncue.protocol.topics import RESULTS, TaskTopics
from oncue.view import View

IDS = batch_ids("ann", new_uuid7(), 6)
ENDPOINTS = ("ep1", "ep2", "ep3")


async def viewed(log: Log, path: Path) -> View:
    view = View.open(path)

    async def changed() -> None:
        pass

    feeder = ViewConsumer(log, view, Notifier(), "srv", changed, lambda batch: None, lambda: True)
    names = list(await log.topics())
    await view.skip_to(await log.begin_offsets(names))
    await feeder.catch_up(names, await log.end_offsets(names), StartProgress())
    await feeder.close()
    return view


async def open_ids(view: View) -> set[bytes]:
    rows = [row for e in ENDPOINTS for row in await view.open_tasks(e, -1, 100)]
    return {row[-1].id for row in rows}


def housekeeper_of(log: Log, view: View, topics: TaskTopics, folder: Path) -> Housekeeper:
    registry = SimpleNamespace(tasks_topic=topics.of, endpoints=lambda: [SimpleNamespace(id=e) for e in ENDPOINTS])
    context: Any = SimpleNamespace(log=log, view=view, settings=Settings(), registry=registry)
    ownership: Any = SimpleNamespace(owns=lambda key: True)
    return Housekeeper(context, cast(BridgeSocket, None), ownership, folder, AsyncMock(return_value=[]))


@pytest.mark.parametrize("shared", [0, 1, 2])
def test_old_open_tasks_are_appended_again_before_the_truncation(tmp_path: Path, shared: int) -> None:
    async def main() -> None:
        topics = TaskTopics(shared)
        log = await open_log(f"sqlite://{tmp_path / 'log'}")
        calls = [Call(VERSION, "f" * 64, ENDPOINTS[n % 3], "ann") for n in range(6)]
        for task_id, call in zip(IDS, calls, strict=True):
            frame = TaskFrame(VERSION, call, 1_000, [TaskRecord(task_id, b"m\x92\x90\x80")])
            await log.append(topics.of(call.endpoint), [Record(encode(frame))])
        for n in (0, 4):  # one of ep1, one of ep2
            end = Ended(IDS[n], 1, OK, 1, 2, b"m\xc0")
            await log.append(RESULTS, [Record(encode(ResultFrame(VERSION, calls[n], "ep", 1_000, [end])))])
        still_open = {IDS[n] for n in (1, 2, 3, 5)}
        names = {topics.of(e) for e in ENDPOINTS}
        before = {t: end for (t, _), end in (await log.end_offsets(names)).items()}
        (tmp_path / "marks.json").write_bytes(msgspec.json.encode([TopicMark(time.time() - 31 * 86_400, before)]))
        view = await viewed(log, tmp_path / "view.db")
        assert await open_ids(view) == still_open
        await housekeeper_of(log, view, topics, tmp_path).cut_task_topics()
        begins = await log.begin_offsets(names)
        assert {t: begin for (t, _), begin in begins.items()} == before
        again = await viewed(log, tmp_path / "again.db")  # from the remaining records
        assert await open_ids(again) == still_open
        await asyncio.gather(view.close(), again.close())
        await log.close()

    asyncio.run(main())


def test_no_task_is_open_in_a_new_view_because_its_result_was_deleted(tmp_path: Path) -> None:
    async def main() -> None:
        topics, now = TaskTopics(), time.time()
        log = await open_log(f"sqlite://{tmp_path / 'log'}")
        await log.ensure({RESULTS: server_topics(Settings())[RESULTS]})
        call = Call(VERSION, "f" * 64, "ep1", "ann")
        name = topics.of(call.endpoint)
        marks = []
        for n, days in enumerate((31.5, 30.5, 29.5)):
            at_ms = int((now - days * 86_400) * 1000)
            frame = TaskFrame(VERSION, call, 1_000, [TaskRecord(IDS[n], b"m\x92\x90\x80")])
            await log.append(name, [Record(encode(frame), time_ms=at_ms)])
            end = ResultFrame(VERSION, call, "ep", 1_000, [Ended(IDS[n], 1, OK, 1, 2, b"m\xc0")])
            await log.append(RESULTS, [Record(encode(end), time_ms=at_ms + 1)])
            marks.append(TopicMark(at_ms / 1000 + 64_800, {name: n + 1}))
        (tmp_path / "marks.json").write_bytes(msgspec.json.encode(marks))
        view = await viewed(log, tmp_path / "view.db")
        for _ in range(2):  # and after a restart
            housekeeper = housekeeper_of(log, view, topics, tmp_path)
            await housekeeper.apply_retention()
            await housekeeper.cut_task_topics()
            await housekeeper.apply_retention()
            again = await viewed(log, tmp_path / "again.db")
            assert await open_ids(again) == set()
            assert await log.begin_offsets([name, RESULTS]) == {(name, 0): 1, (RESULTS, 0): 1}
            await again.close()
        await view.close()
        await log.close()

    asyncio.run(main())
