"""RemoteRules and StreamWorkers of a server, and the RegistryReader of a worker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from oncue.errors import Invalid
from oncue.log import Log, Record, Topic, open_log
from oncue.log.base import RecordBatch as LogBatch
from oncue.log.base import partition_of
from oncue.log.partition import read_partition
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import VERSION, Deployment, EndpointRecord, Event, RuleSwitch, TokenRecord
from oncue.protocol.topics import MATCHES, REGISTRY, STREAM, WINDOWS, TaskTopics
from oncue.rules.active_rules import RuleCompiler
from oncue.rules.registry_reader import RegistryReader
from oncue.rules.stateful import changelog_reader
from oncue.rules.stateful.changelog_states import ChangelogStates, records
from oncue.rules.stateful.record_group import WindowSummary
from oncue.rules.stateful.remote import RemoteRules
from oncue.rules.stateful.worker_reports import SILENT_S, TOPIC, RuleReport, StreamReport, StreamWorkers, summed

PARTITIONS = 4


def with_log(folder: Path, body: Callable[[Log], Awaitable[None]]) -> None:
    async def run() -> None:
        log = await open_log(f"sqlite://{folder / 'log'}")
        try:
            await log.ensure({WINDOWS: Topic(partitions=PARTITIONS, compact=True), STREAM: TOPIC})
            await body(log)
        finally:
            await log.close()

    asyncio.run(run())


def report(worker: str, *partitions: int, rules: tuple[RuleReport, ...] = ()) -> bytes:
    return encode(StreamReport(VERSION, worker, 1, "0", partitions, rules))


def counts(rule: str, fired: int, windows: int = 0, due_ms: int = 0) -> RuleReport:
    return RuleReport(rule, windows, 2 * windows, due_ms, fired, 0, 0)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_workers_count_as_running_while_they_report(tmp_path: Path) -> None:
    async def body(log: Log) -> None:
        clock = Clock()
        workers = StreamWorkers(log, clock)
        windows = RemoteRules(log, workers, PARTITIONS)
        url = "kafka://a:1?prefix=x.&session_s=2"
        assert "start one: oncue stream --log 'kafka://a:1?prefix=x.&session_s=2'" in windows.trouble(url)
        workers.apply(b"one", report("one", 0, 1))
        assert "2, 3 of oncue.matches" in windows.trouble(url)
        workers.apply(b"two", report("two", 2, 3))
        assert windows.trouble(url) == ""
        clock.now += SILENT_S - 1
        workers.apply(b"two", report("two", 2, 3))
        clock.now += 2
        assert [r.worker for r in workers.alive()] == ["two"]
        workers.apply(b"two", b"")
        assert "no stream worker reports" in windows.trouble(url)
        workers.apply(b"three", b"\xff not a report")
        assert not workers.alive()

    with_log(tmp_path, body)


def test_counters_begin_when_this_process_begins_to_read(tmp_path: Path) -> None:
    async def body(log: Log) -> None:
        workers = StreamWorkers(log, Clock())
        workers.apply(b"one", report("one", 0, rules=(counts("r", 7),)), before=True)
        assert workers.counted == {}
        workers.apply(b"one", report("one", 0, rules=(counts("r", 9, windows=1, due_ms=50),)))
        workers.apply(b"two", report("two", 1, rules=(counts("r", 1, windows=2, due_ms=40), counts("s", 0))))
        assert workers.counted == {"r": (3, 0), "s": (0, 0)}
        assert workers.rules()["r"] == RuleReport("r", 3, 6, 40, 10, 0, 0)
        assert await RemoteRules(log, workers, PARTITIONS).summary() == {"r": WindowSummary(3, 6, 40)}
        assert summed([]) == {}

    with_log(tmp_path, body)


def test_reports_have_the_firings_that_made_no_task() -> None:
    one, two = (RuleReport("r", 0, 0, 0, 0, 0, 0, shadow=n, empty=2 * n) for n in (1, 2))
    assert summed([one, two]) == {"r": RuleReport("r", 0, 0, 0, 0, 0, 0, shadow=3, empty=6)}


def test_a_report_has_the_reason_why_events_were_dropped(tmp_path: Path) -> None:
    async def body(log: Log) -> None:
        workers = StreamWorkers(log, Clock())
        workers.apply(b"one", report("one", 0, rules=(RuleReport("r", 0, 0, 0, 0, 2, 0, "dropped: 2 of 3"),)))
        workers.apply(b"two", report("two", 1, rules=(counts("r", 1),)))
        assert workers.rules()["r"].reason == "dropped: 2 of 3"

    with_log(tmp_path, body)


def test_a_report_of_an_older_worker_has_no_reason() -> None:
    older = encode(["r", 1, 2, 3, 4, 5, 6])
    assert decode(RuleReport, older) == RuleReport("r", 1, 2, 3, 4, 5, 6, "")


def test_recent_reports_of_the_log_are_applied_and_old_ones_ignored(tmp_path: Path) -> None:
    async def body(log: Log) -> None:
        old = Record(report("old", 0), b"old", time_ms=1)
        await log.append(STREAM, [old, Record(report("young", 1), b"young")])
        heard: asyncio.Queue[bytes] = asyncio.Queue()

        class Heard(StreamWorkers):
            def apply(self, key: bytes, value: bytes, before: bool = False, fresh: bool = True) -> None:
                super().apply(key, value, before, fresh)
                heard.put_nowait(key)

        workers = Heard(log)
        task = asyncio.create_task(workers.run())
        async with asyncio.timeout(20):
            assert [await heard.get() for _ in range(2)] == [b"old", b"young"]
            assert workers.partitions() == {1}
            await log.append(STREAM, [Record(report("fresh", 2), b"fresh")])
            assert await heard.get() == b"fresh"
        assert workers.partitions() == {1, 2}
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with_log(tmp_path, body)


RULES = {
    "rules": [
        {
            "name": "r",
            "on": {"type": "t"},
            "dedupe": {"key": "${data.p}", "ttl": "1h"},
            "batch": {"key": "${data.k}", "count": 10},
            "run": {"function": "f", "args": {"n": "${each.data.n}"}},
        }
    ]
}
DEPLOYED = Deployment(VERSION, "f", 1, "ann", json.dumps(RULES), {"f": "hash"})


def event(n: int, **data: object) -> Event:
    return Event(id=str(n), source="/s", type="t", data={"n": n, "p": f"p{n}", "k": "a"} | data)


def test_explain_reads_the_changelog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(log: Log) -> None:
        entry = RuleCompiler().compile([DEPLOYED]).entries["r"]
        operators = entry.rule.operators
        assert operators is not None
        windows = RemoteRules(log, StreamWorkers(log), PARTITIONS)
        assert "no window is open" in (await windows.preview(entry, event(1))).why
        now_ms = 1_000_000_000_000_000  # far ahead, so that the key's ttl has not passed
        matches = [operators.match("r", "f", 1, event(n), now_ms, 0) for n in (1, 2)]
        part = partition_of(operators.partition_key(matches[0]), PARTITIONS)
        table = ChangelogStates()
        found = [Record(encode(m)) for m in matches]
        _, changes = table.fold([LogBatch(MATCHES, part, range(2), found)])
        await log.append(WINDOWS, records(changes), part)
        preview = await windows.preview(entry, event(3))
        assert preview.passes
        assert "2 of 10 events in the open window" in preview.why
        double = await windows.preview(entry, event(4, p="p1"))
        assert not double.passes
        assert "the key p1 fired" in double.why
        bad = Event(id="5", source="/s", type="t", data={})
        with pytest.raises(Invalid):
            await windows.preview(entry, bad)
        reads = count_reads(monkeypatch)
        assert await windows.buffers(entry, [event(1), bad, event(3), event(2)]) == [True, False, False, True]
        assert len(reads) == 1  # in one partition, and not once for each event

    with_log(tmp_path, body)


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the partitions of the changelog that are read from now on."""
    found: list[int] = []

    def read(log: Log, topic: str, part: int) -> AsyncIterator[LogBatch]:
        found.append(part)
        return read_partition(log, topic, part)

    monkeypatch.setattr(changelog_reader, "read_partition", read)
    return found


def test_a_worker_reads_rules_and_endpoints_from_the_registry(tmp_path: Path) -> None:
    async def body(log: Log) -> None:
        changed = asyncio.Event()
        registry = RegistryReader(log, changed.set, TaskTopics())
        task = asyncio.create_task(registry.run())

        async def put(*entries: tuple[str, object]) -> None:
            await log.append(REGISTRY, [Record(encode(entry), key.encode()) for key, entry in entries])
            async with asyncio.timeout(20):
                await registry.caught_up()

        token = TokenRecord(VERSION, "t", "h", "ann", ())
        endpoint = EndpointRecord(VERSION, "e1", "local", "ann", b"")
        await put(("token:t", token), ("endpoint:e1", endpoint), ("deployment:f@1", DEPLOYED))
        assert changed.is_set()
        assert list(registry.active_rules.entries) == ["r"]
        assert (registry.endpoint_id("local", "ann"), registry.endpoint_id("e1", "ann")) == ("e1", "e1")
        assert registry.endpoint_id("local", "bob") is None
        assert await registry.deployment("f", 1) == DEPLOYED
        removed = Deployment(VERSION, "f", 2, "ann", "", {}, removed=True)
        await put(("deployment:f@2", removed))
        assert not registry.active_rules.entries
        assert await registry.deployment("f", 2) is None
        third = Deployment(VERSION, "f", 3, "ann", json.dumps(RULES), {"f": "hash"})
        await put(("deployment:f@3", third), ("switch:r", RuleSwitch(VERSION, "r", False, "ann")))
        assert registry.active_rules.entries["r"].disabled_because
        await log.append(REGISTRY, [Record(b"", b"switch:r"), Record(b"\x01 damaged", b"deployment:g@1")])
        async with asyncio.timeout(20):
            await registry.caught_up()
        assert not registry.active_rules.entries["r"].disabled_because
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with_log(tmp_path, body)
