"""The engine on the embedded log: each event fires once, through crashes.

Tasks and dead letters have the same ids when work is repeated.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from oncue.errors import LogError, NotFound
from oncue.ids import rule_task_ids
from oncue.log import open_log
from oncue.log.base import Append, Log, Position, Record, RecordBatch
from oncue.protocol import cloudevents, payload
from oncue.protocol.codec import decode
from oncue.protocol.event_types import OUTCOME_SOURCE, OUTCOME_TYPE
from oncue.protocol.records import VERSION, DeadLetter, Deployment, Event, RuleSwitch, TaskFrame, TaskRecord
from oncue.protocol.topics import DEAD, EVENTS, MATCHES, RESULTS, TaskTopics
from oncue.rules.batch_result import MAX_DEPTH
from oncue.rules.engine import Engine
from oncue.rules.operators.records import Match
from oncue.rules.outcomes.outcome_batches import OutcomePart


class Endpoints:
    """A directory of two endpoints of one owner."""

    def is_revoked(self, name: str, owner: str) -> bool:
        return False

    def tasks_topic(self, endpoint: str) -> str:
        return TaskTopics().of(endpoint)

    def endpoint_id(self, name: str, owner: str) -> str | None:
        return {"local": "e1", "polaris": "e2"}.get(name) if owner == "ann" else None


def deployed(rules: list[dict[str, Any]], version: int = 1, label: str = "f") -> Deployment:
    return Deployment(VERSION, label, version, "ann", json.dumps({"rules": rules}), {"f": "hash-f", "g": "hash-g"})


def rule(name: str = "r", run: Any = None, **more: Any) -> dict[str, Any]:
    return {"name": name, "on": {"type": "t"}, "run": run or {"function": "f", "args": {"n": "${data.n}"}}} | more


def record(n: int, data: Any = None, **extensions: str | int | bool) -> Record:
    event = Event(id=str(n), source="/s", type="t", data={"n": n} if data is None else data, extensions=extensions)
    value, headers = cloudevents.to_record(event)
    return Record(value, headers=headers)


def with_log(folder: Path, body: Callable[[Log], Awaitable[None]]) -> None:
    async def main() -> None:
        log = await open_log(f"sqlite://{folder}")
        try:
            await body(log)
        finally:
            await log.close()

    asyncio.run(main())


async def all_of(log: Log, topic: str) -> list[Record]:
    ends = await log.end_offsets([topic])
    reader, found = log.read([topic], start="earliest"), []
    while ends and any(ends.values()):
        for batch in await reader.next():
            found += batch.records
            if batch.next_offset >= ends[topic, batch.partition]:
                ends.pop((topic, batch.partition))
    await reader.close()
    return found


async def frames(log: Log, endpoint: str = "e1") -> list[TaskFrame]:
    return [decode(TaskFrame, r.value) for r in await all_of(log, TaskTopics().of(endpoint))]


async def tasks(log: Log, endpoint: str = "e1") -> list[TaskRecord]:
    return [task for frame in await frames(log, endpoint) for task in frame.tasks]


async def dead(log: Log) -> list[DeadLetter]:
    return [decode(DeadLetter, r.value) for r in await all_of(log, DEAD)]


async def consume(log: Log, engine: Engine) -> None:
    """Let the engine run until it has seen all events."""
    running = asyncio.create_task(engine.run())
    async with asyncio.timeout(60):
        while any((await log.lag("rules", [EVENTS])).values()):
            assert not running.done(), running.exception()
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def test_events_become_frames_of_tasks(tmp_path: Path) -> None:
    async def body(log: Log) -> None:
        engine = Engine(log, Endpoints())
        both = [{"function": "f", "args": ["${data.n}"]}, {"function": "g", "endpoint": "polaris"}]
        retry = {"max": 2, "base": "1s"}
        engine.update(
            [deployed([rule(run=both, retry=retry, timeout="5s", expires="1m", match={"data.n": {"lt": 2}})], 7)]
        )
        await log.append(EVENTS, [record(n, oncuetimems=str(1_700_000_000_000), oncuemarkus="5") for n in range(4)])
        await consume(log, engine)
        (first,), (second,) = await frames(log), await frames(log, "e2")
        assert (first.call.function, first.call.name, first.call.rule, first.call.rule_version) == (
            "hash-f",
            "f",
            "r",
            7,
        )
        assert (first.call.endpoint, second.call.endpoint, first.call.owner) == ("e1", "e2", "ann")
        assert first.call.retry is not None
        assert (first.call.retry.max, first.call.retry.base_ms, first.call.timeout_ms) == (2, 1_000, 5_000)
        assert first.call.expires_us == first.accepted_us + 60_000_000
        assert [payload.unpack_args(t.args) for t in first.tasks] == [((0,), {}), ((1,), {})]
        assert [t.event for t in second.tasks] == [("/s", "0"), ("/s", "1")]
        assert first.tasks[0].mark_us == 5
        ids = [rule_task_ids("r", "", "/s", str(n), 1_700_000_000_000, 2) for n in range(2)]
        assert [[a.id, b.id] for a, b in zip(first.tasks, second.tasks, strict=True)] == ids
        assert engine.rules()[0].fired == 4
        assert not await dead(log)

    with_log(tmp_path, body)


def test_an_invalid_event_among_many_becomes_one_dead_letter(tmp_path: Path) -> None:
    async def body(log: Log) -> None:
        engine = Engine(log, Endpoints())
        engine.update(
            [
                deployed(
                    [
                        rule("good"),
                        rule("args", {"function": "f", "args": {"x": "${data.only_7}"}}, match={"data.n": [7, 8]}),
                        rule("nowhere", {"function": "f", "endpoint": "mars"}, match={"data.n": 9}),
                        rule("nothing", {"function": "h"}, match={"data.n": 10}),
                    ]
                )
            ]
        )
        poison = [Record(b"\xff not JSON"), Record(b'{"specversion":"1.0"}'), Record(b"[" * 10_000), Record(b"")]
        given = [record(n, {"n": n, "only_7": 1} if n == 7 else None) for n in range(300)]
        await log.append(EVENTS, [*given[:100], *poison, *given[100:], record(300, oncuedepth=MAX_DEPTH)])
        await consume(log, engine)
        calls = [(f.call.rule, payload.unpack_args(t.args)[1]) for f in await frames(log) for t in f.tasks]
        assert [kwargs["n"] for name, kwargs in calls if name == "good"] == list(range(300))
        assert [kwargs for name, kwargs in calls if name == "args"] == [{"x": 1}]
        letters = await dead(log)
        assert [(d.stage, d.rule, d.offset) for d in letters] == [
            ("args", "args", 8), ("dispatch", "nowhere", 9), ("dispatch", "nothing", 10),
            ("decode", "", 100), ("decode", "", 101), ("decode", "", 102), ("decode", "", 103), ("match", "", 304),
        ]  # fmt: skip
        assert letters[0].reason == "args.x: the event has no data.only_7"
        assert letters[0].event == ("/s", "8")
        assert all(d.remedy for d in letters[:3])
        assert [d.owner for d in letters] == ["ann"] * 3 + [""] * 5
        assert letters[3].record == poison[0].value
        info = {i.name: i for i in engine.rules()}
        assert (info["good"].fired, info["args"].fired, info["nowhere"].fired) == (300, 1, 0)
        assert info["nowhere"].why == "there is no endpoint 'mars' for ann"

    with_log(tmp_path, body)


def test_work_repeated_after_a_crash_has_the_same_ids_also_with_a_later_version(tmp_path: Path) -> None:
    """Repeat the batches of a crash before the commit, with a later rule version."""

    async def body(log: Log) -> None:
        await log.append(EVENTS, [record(n) for n in range(50)])

        async def dies() -> None:
            raise RuntimeError("killed before the commit")

        crashing = Engine(log, Endpoints(), before_batch=dies)
        with pytest.raises(RuntimeError):
            await crashing.run()
        assert not await tasks(log)
        batches: list[RecordBatch] = await log.read([EVENTS], start="earliest").next()
        for version, replay in ((1, ""), (2, ""), (2, "again")):
            engine = Engine(log, Endpoints(), replay=replay)
            engine.update([deployed([rule()], version)])
            await engine.step(batches)
        found = [t.id for t in await tasks(log)]
        assert len(set(found[:50])) == 50
        assert found[:50] == found[50:100]
        assert not set(found[:50]) & set(found[100:])
        assert [f.call.rule_version for f in await frames(log)] == [1, 2, 2]

    with_log(tmp_path, body)


def test_a_deploy_applies_to_the_next_batch_and_a_switch_disables_a_rule(tmp_path: Path) -> None:
    async def body(log: Log) -> None:
        engine: Engine

        async def catch_up() -> None:
            engine.update([deployed([rule("a"), rule("b")])], [RuleSwitch(VERSION, "b", False, "ann")])

        engine = Engine(log, Endpoints(), before_batch=catch_up)
        await log.append(EVENTS, [record(1)])
        await consume(log, engine)
        assert [f.call.rule for f in await frames(log)] == ["a"]
        happened = cloudevents.from_record(record(1).value)
        assert (await engine.explain("a", happened)).fires
        assert (await engine.explain("b", happened)).why == "disabled by ann"
        with pytest.raises(NotFound):
            await engine.explain("c", happened)
        await engine.close()

    with_log(tmp_path, body)


def test_large_arguments_are_offloaded_before_the_commit(tmp_path: Path) -> None:
    stored: list[bytes] = []

    async def store(content: bytes) -> bytes:
        stored.append(content)
        return payload.pack_ref(payload.Ref("0" * 64, len(content)))

    async def body(log: Log) -> None:
        engine = Engine(log, Endpoints(), offload=store)
        engine.update([deployed([rule()])])
        await log.append(EVENTS, [record(0, {"n": "x" * 400_000}), record(1)])
        await consume(log, engine)
        large, small = await tasks(log)
        assert payload.ref_of(large.args) is not None
        assert payload.unpack_args(small.args) == ((), {"n": 1})
        assert len(stored) == 1

    with_log(tmp_path, body)


def test_a_failed_commit_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(log: Log) -> None:
        real, failures = log.commit, [LogError("a hiccup"), LogError("another")]

        async def commit(group: str, batches: Any, appends: Any = (), *, repeatable: bool = False) -> list[Position]:
            if failures:
                raise failures.pop()
            assert all(isinstance(a, Append) for a in appends)
            return await real(group, batches, appends, repeatable=repeatable)

        monkeypatch.setattr(log, "commit", commit)
        engine = Engine(log, Endpoints())
        engine.update([deployed([rule()])])
        await log.append(EVENTS, [record(1)])
        await consume(log, engine)
        assert len(await tasks(log)) == 1
        assert engine.rules()[0].fired == 1

    with_log(tmp_path, body)


def test_a_match_is_not_in_the_future_wherever_it_is_made(tmp_path: Path) -> None:
    """On Kafka the time of an event is that of its producer's clock."""
    ahead_ms = time.time_ns() // 1_000_000 + 3_600_000

    async def body(log: Log) -> None:
        engine = Engine(log, Endpoints())
        engine.update([deployed([rule(dedupe={"key": "${data.n}", "ttl": "1m"}, when="data.l.all(x, x >= 0)")])])
        events = [record(1, {"l": [1], "n": 1}), record(2, {"l": list(range(7_000)), "n": 2})]  # the second one apart
        await log.append(EVENTS, [Record(e.value, headers=e.headers, time_ms=ahead_ms) for e in events])
        await consume(log, engine)
        await engine.close()
        matches = [decode(Match, r.value) for r in await all_of(log, MATCHES)]
        assert [m.event.id for m in matches] == ["1", "2"]
        assert max(m.at_ms for m in matches) <= time.time_ns() // 1_000_000

    with_log(tmp_path, body)


class OneOutcome:
    """Gives one outcome for each batch. It stands in for those that a view knows."""

    async def parts(self, batch: RecordBatch, wants: object) -> AsyncIterator[OutcomePart]:
        data = {"owner": "ann", "rule": "q", "state": "succeeded"}
        event = Event(id="1", source=OUTCOME_SOURCE, type=f"{OUTCOME_TYPE}succeeded", data=data)
        yield OutcomePart(RecordBatch(RESULTS, 0, [0], [Record(b"{}")]), [event], [])


def test_outcomes_that_start_nothing_are_counted_without_a_commit(tmp_path: Path) -> None:
    async def body(log: Log) -> None:
        engine = Engine(log, Endpoints())
        seen, unclear = rule("seen", mode="shadow"), rule("unclear", when="data.value.x > 1")
        engine.update([deployed([r | {"on": {"done": "q"}} for r in (seen, unclear)])])
        outcomes: Any = OneOutcome()
        assert not await engine.step_outcomes([RecordBatch(RESULTS, 0, [0], [Record(b"")])], outcomes, False)
        counts = {info.name: (info.shadow, info.unevaluated) for info in engine.rules()}
        assert counts == {"seen": (1, 0), "unclear": (0, 1)}
        await engine.close()

    with_log(tmp_path, body)
