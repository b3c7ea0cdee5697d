"""Items of live feeds, made of log records."""

from __future__ import annotations

from typing import Any

from oncue.dispatcher.live_feed import MAX_ITEMS, feed_items
from oncue.log import Record, RecordBatch
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION, Call, DeadLetter, Deployment, RuleSwitch, TaskFrame, TaskRecord, TokenRecord
from oncue.protocol.topics import DEAD, EVENTS, REGISTRY, RESULTS, TASKS_PREFIX


def items(topic: str, *records: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return the items of a batch that begins at offset 10."""
    made = [r if isinstance(r, Record) else Record(encode(r)) for r in records]
    return list(feed_items(RecordBatch(topic, 0, range(10, 10 + len(made)), made)))


def test_an_event_is_named_by_its_offset_only() -> None:
    assert items(EVENTS, Record(b"{}"), Record(b"{}")) == [("event", {"offset": 10}), ("event", {"offset": 11})]


def test_a_task_has_its_owner_who_alone_may_see_it() -> None:
    call = Call(VERSION, "f" * 64, "ep", "ada", "f", rule="r")
    frame = TaskFrame(VERSION, call, 5, [TaskRecord(b"1" * 16, b""), TaskRecord(b"2" * 16, b"", ("/s", "1"))])
    found = items(TASKS_PREFIX + "ep", frame)
    assert [(kind, item["id"], item["event"]) for kind, item in found] == [
        ("task", (b"1" * 16).hex(), None),
        ("task", (b"2" * 16).hex(), ["/s", "1"]),
    ]
    assert {(item["owner"], item["state"], item["rule"]) for _, item in found} == {("ada", "waiting", "r")}


def test_of_the_registry_only_rules_are_shown() -> None:
    token = TokenRecord(VERSION, "tok_1", "h", "ada", ("user",))
    found = items(
        REGISTRY,
        token,
        Deployment(VERSION, "tomo", 2, "ada", "", {}),
        Record(b""),
        RuleSwitch(VERSION, "r", False, "ada", "beam is down"),
    )
    assert found == [
        ("rule", {"label": "tomo", "version": 2, "removed": False, "owner": "ada"}),
        ("rule", {"name": "r", "enabled": False, "by": "ada", "why": "beam is down"}),
    ]


def test_a_record_that_cannot_be_read_is_skipped() -> None:
    letter = DeadLetter(VERSION, "match", "it does not fit", 5, rule="r", record=b"secret", owner="ada")
    assert items(DEAD, Record(b"\xff"), letter) == [
        ("dead", {"offset": 11, "stage": "match", "rule": "r", "owner": "ada"})
    ]


def test_a_large_batch_gives_a_bounded_number_of_items_and_results_none() -> None:
    assert len(items(EVENTS, *[Record(b"{}")] * (MAX_ITEMS + 5))) == MAX_ITEMS
    assert items(RESULTS, Record(b"{}")) == []
