"""Outcome events: what of a task they tell, and what they leave out."""

from __future__ import annotations

from typing import Any

import pytest

from oncue.protocol import cloudevents, payload
from oncue.protocol.codec import encode
from oncue.protocol.records import ERROR, OK, VERSION, Call, Ended, Event, Failure, TaskRecord
from oncue.protocol.run_options import TaskFile
from oncue.rules.outcomes.outcome_event import FIELDS, outcome_event
from oncue.task_lifecycle import TaskState, accept, end
from oncue.view.chains.causes import Cause

ID = bytes(range(16))
CALL = Call(VERSION, "hash", "ep_1", "ann", "reconstruct", "scans", 3)


def closed(value: bytes, status: int = OK, args: bytes | None = None) -> TaskState:
    packed = payload.pack_args((), {"path": "/a"}) if args is None else args
    state = accept(None, CALL, TaskRecord(ID, packed, ("/s", "7"), b"", 5_000_000), 1_000_000)
    return end(state, CALL, 1_000_000, Ended(ID, 1, status, 2_000_000, 3_500_000, value))


def event_of(state: TaskState, cause: Cause = Cause()) -> Event:  # noqa: B008 - it is frozen
    found = outcome_event(state, cause, "polaris")
    assert cloudevents.from_record(*cloudevents.to_record(found)) == found
    assert set(found.data) <= set(FIELDS)
    return found


def test_a_success_has_arguments_value_times_and_first_event() -> None:
    began = Event(id="7", source="/s", type="t", data={"n": 1}, extensions={"oncuedepth": "2"})
    found = event_of(closed(payload.pack({"out": [1, 2]})), Cause(("/s", "7"), began, 3, 90))
    assert (found.type, found.source, found.id) == ("oncue.task.succeeded", "/oncue/tasks", ID.hex())
    assert found.subject == "scans"
    assert found.extensions == {"oncuedepth": "6", "oncuetimems": "3500", "oncuemarkus": "5000000"}
    assert found.data == {
        "task": ID.hex(),
        "rule": "scans",
        "rule_version": 3,
        "function": "reconstruct",
        "endpoint": "polaris",
        "owner": "ann",
        "state": "succeeded",
        "attempts": 1,
        "accepted": "1970-01-01T00:00:01.000Z",
        "started": "1970-01-01T00:00:02.000Z",
        "ended": "1970-01-01T00:00:03.500Z",
        "args": {"path": "/a"},
        "value": {"out": [1, 2]},
        "event": {"source": "/s", "id": "7", "type": "t", "data": {"n": 1}},
    }


def test_a_failure_has_its_message_exit_code_and_files() -> None:
    files = (TaskFile("stderr", "0" * 64, 12),)
    failure = Failure("ValueError", "bad", "in f", exit_code=75, files=files)
    found = event_of(closed(encode(failure), ERROR))
    assert found.type == "oncue.task.failed"
    assert found.data["failure"] == {"type": "ValueError", "message": "bad", "traceback": "in f", "exit_code": 75}
    assert found.data["files"] == [{"name": "stderr", "sha256": "0" * 64, "size": 12}]
    assert "value" not in found.data


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({1, 2}, "a pickled value of"),
        (b"x", "it has bytes, which an event in JSON cannot hold"),
        ([float("nan")], "it has nan, which JSON does not have"),
        ("x" * 70_000, "70,0"),
    ],
)
def test_a_value_that_no_event_can_hold_is_left_out_with_a_reason(value: Any, why: str) -> None:
    found = event_of(closed(payload.pack(value)))
    assert "value" not in found.data
    assert found.data["omitted"]["value"].startswith(why)


@pytest.mark.parametrize(
    ("args", "kwargs", "shown"),
    [((1, 2), {}, [1, 2]), ((), {}, []), ((), {"a": 1}, {"a": 1}), ((5,), {"a": 1}, {"0": 5, "a": 1})],
)
def test_arguments_are_a_mapping_or_a_list(args: tuple[int, ...], kwargs: dict[str, int], shown: Any) -> None:
    assert event_of(closed(payload.pack(None), args=payload.pack_args(args, kwargs))).data["args"] == shown


def test_a_first_event_that_is_gone_large_or_binary_keeps_its_key() -> None:
    state = closed(payload.pack(None))
    gone = event_of(state, Cause(("/s", "7"), None, 0, 0))
    assert gone.data["event"] == {"source": "/s", "id": "7"}
    assert gone.data["omitted"] == {"event": "the event is not kept any more"}
    large = event_of(state, Cause(("/s", "7"), Event(id="7", source="/s", type="t", data=[0]), 0, 70_000))
    assert "data" not in large.data["event"]
    binary = event_of(state, Cause(("/s", "7"), Event(id="7", source="/s", type="t", data=b"\0"), 0, 9))
    assert binary.data["omitted"] == {"event": "its data is binary, 1 bytes"}
