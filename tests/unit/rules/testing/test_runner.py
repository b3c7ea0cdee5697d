"""`tests:` of stateful rules, on a virtual clock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oncue.rules.parsing.rule_file import parse
from oncue.rules.testing.runner import TestResult, run_tests


def outcome(folder: Path, test: dict[str, Any], args: Any = None, **more: Any) -> TestResult:
    run = {"function": "f", "args": {"n": "${each.data.n}"} if args is None else args}
    text = json.dumps({"rules": [{"name": "r", "on": {"type": "t"}, "run": run, "tests": [test]} | more]})
    (found,) = run_tests(parse(text, "r.yaml"), folder)
    return found


def at(seconds: float, n: int, **more: Any) -> dict[str, Any]:
    return {"at": f"{seconds}s", "event": {"type": "t", "data": {"n": n} | more}}


EVENTS = [at(0, 1), at(0, 2), at(5, 3), at(31, 4), at(40, 5)]


@pytest.mark.parametrize(
    ("batch", "expect", "why"),
    [
        ({"wait": "30s"}, {"args": [{"n": [1, 2, 3]}, {"n": [4, 5]}]}, "it fires 2 times: at 30s for 3, at 61s for 2"),
        ({"count": 2}, {"fires": 2, "args": [{"n": [1, 2]}, {"n": [3, 4]}]}, "it fires 2 times: at 0ms for 2, at 31s for 2"),
        ({"count": 3, "wait": "4s"}, {"fires": 4}, "it fires 4 times: at 4s for 2, at 9s for 1, at 35s for 1, at 44s for 1"),
        ({"count": 9}, {"fires": 0}, "it does not fire: its window is open still, and has no `wait` to close it"),
        ({"count": 9}, {"fires": False}, "it does not fire: its window is open still, and has no `wait` to close it"),
    ],
)  # fmt: skip
def test_a_batch_over_time(tmp_path: Path, batch: dict[str, Any], expect: dict[str, Any], why: str) -> None:
    found = outcome(tmp_path, {"events": EVENTS, "expect": expect}, batch=batch)
    assert (found.passed, found.why) == (True, why)
    assert not outcome(tmp_path, {"events": EVENTS, "expect": {"fires": 3}}, batch=batch).passed


def test_dedupe_over_time_and_wrong_arguments(tmp_path: Path) -> None:
    events = [at(0, 1, p="a"), at(9, 2, p="a"), at(9, 3, p="b"), at(10, 4, p="a")]
    dedupe = {"key": "${data.p}", "ttl": "10s"}
    wanted = [{"n": 1}, {"n": 3}, {"n": 4}]
    args = {"n": "${data.n}"}
    assert outcome(tmp_path, {"events": events, "expect": {"fires": 3, "args": wanted}}, args, dedupe=dedupe).passed
    found = outcome(tmp_path, {"events": events, "expect": {"args": wanted[:2]}}, args, dedupe=dedupe)
    assert found.why == "the arguments are [{'n': 1}, {'n': 3}, {'n': 4}], expected [{'n': 1}, {'n': 3}]"
    # The default key is the event: events without an id differ, and a repeated id is the same event.
    assert outcome(tmp_path, {"events": events, "expect": {"fires": 4}}, args, dedupe={"ttl": "10s"}).passed
    twice = [{"event": {"type": "t", "id": "x", "data": {"n": 1}}}] * 2
    assert outcome(tmp_path, {"events": twice, "expect": {"fires": 1}}, args, dedupe={"ttl": "10s"}).passed
    # A rule without operators can have a test over time too.
    assert outcome(tmp_path, {"events": twice, "expect": {"fires": 2}}, args).passed


def test_one_event_and_what_cannot_be(tmp_path: Path) -> None:
    one = {"type": "t", "data": {"n": 1}}
    test = {"event": one, "expect": {"fires": True, "args": {"n": [1]}}}
    assert outcome(tmp_path, test, batch={"wait": "30s"}).passed
    assert outcome(tmp_path, {"event": one | {"type": "u"}, "expect": {"fires": False}}, batch={"wait": "30s"}).passed
    missing = outcome(tmp_path, {"event": one, "expect": {}}, batch={"wait": "30s", "key": "${data.scan}"})
    assert missing.why == "a dead letter: batch.key: the event has no data.scan"
    assert not outcome(tmp_path, {"events": [{"event": "no.json"}], "expect": {}}, batch={"wait": "30s"}).passed
