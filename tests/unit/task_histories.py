"""Random histories of a few tasks, for the tests of the fold and of the view: records of four topics, each in its order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from oncue import task_lifecycle
from oncue.protocol.records import VERSION, Call, Cancel, Ended, ResultFrame, StoredRetryPolicy, TaskFrame, TaskRecord
from oncue.protocol.reports import Started
from oncue.protocol.topics import CONTROL, REPORTS, RESULTS, TaskTopics
from oncue.task_lifecycle import TaskState

ENDPOINT = "ep"
ACCEPTED_US = 1_000
TASKS = TaskTopics().of(ENDPOINT)
PLAIN = Call(VERSION, "f" * 64, ENDPOINT, "ann", "plain")
RETRIED = Call(
    VERSION, "e" * 64, ENDPOINT, "bob", "retried", rule="r", retry=StoredRetryPolicy(2, on=("lost", "error", "timeout"))
)
IDS = [bytes([i]) * 16 for i in range(1, 7)]
CALLS = {task_id: (PLAIN, RETRIED)[i % 2] for i, task_id in enumerate(IDS)}
EVENTS = {task_id: ("src", f"e{i % 2}") if i % 3 == 0 else None for i, task_id in enumerate(IDS)}

Entry = tuple[str, Any]  # topic, message


def task_of(task_id: bytes) -> TaskRecord:
    return TaskRecord(task_id, b"args" + task_id[:1], EVENTS[task_id], b"", task_id[0] if EVENTS[task_id] else 0)


def _ids(call: Call) -> st.SearchStrategy[list[bytes]]:
    return st.lists(st.sampled_from([i for i in IDS if CALLS[i] is call]), min_size=1, max_size=4)


_calls = st.sampled_from((PLAIN, RETRIED))
_frames = _calls.flatmap(
    lambda call: _ids(call).map(lambda ids: TaskFrame(VERSION, call, ACCEPTED_US, [task_of(i) for i in ids]))
)


@st.composite
def _ended(draw: st.DrawFn, call: Call) -> Ended:
    task_id = draw(st.sampled_from([i for i in IDS if CALLS[i] is call]))
    attempt, status = draw(st.integers(1, 3)), draw(st.integers(0, 6))
    ended_us = draw(st.integers(2_000, 2_002))
    value, output = draw(st.sampled_from((b"", b"v"))), draw(st.sampled_from((b"", b"o")))
    return Ended(task_id, attempt, status, 0, ended_us, value, output, EVENTS[task_id], b"", task_of(task_id).mark_us)


_results = _calls.flatmap(
    lambda call: st.lists(_ended(call), min_size=1, max_size=5).map(
        lambda ended: ResultFrame(VERSION, call, ENDPOINT, ACCEPTED_US, ended)
    )
)
_cancels = st.builds(
    lambda ids, at: Cancel(VERSION, ENDPOINT, tuple(ids), f"by{at}", at),
    st.lists(st.sampled_from(IDS), min_size=1, max_size=3),
    st.integers(0, 3),
)
_starts = st.builds(
    lambda tasks: Started(VERSION, ENDPOINT, tuple(tasks)),
    st.lists(st.tuples(st.sampled_from(IDS), st.integers(1, 3), st.integers(1, 5)), min_size=1, max_size=3),
)


def histories() -> st.SearchStrategy[dict[str, list[Any]]]:
    """Messages by topic."""
    return st.fixed_dictionaries(
        {
            TASKS: st.lists(_frames, max_size=5),
            RESULTS: st.lists(_results, max_size=6),
            CONTROL: st.lists(_cancels, max_size=2),
            REPORTS: st.lists(_starts, max_size=2),
        }
    )


@st.composite
def interleaved(draw: st.DrawFn, history: dict[str, list[Any]]) -> list[Entry]:
    """One order in which a reader may see a history: each topic in its own order."""
    turns = draw(st.permutations([topic for topic, messages in history.items() for _ in messages]))
    left = {topic: iter(messages) for topic, messages in history.items()}
    return [(topic, next(left[topic])) for topic in turns]


def fold(entries: Sequence[Entry], states: dict[bytes, TaskState] | None = None) -> dict[bytes, TaskState]:
    """What task_lifecycle.py makes of these records."""
    states = dict(states or {})
    for _, message in entries:
        if isinstance(message, TaskFrame):
            for t in message.tasks:
                states[t.id] = task_lifecycle.accept(states.get(t.id), message.call, t, message.accepted_us)
        elif isinstance(message, ResultFrame):
            for e in message.ended:
                states[e.id] = task_lifecycle.end(states.get(e.id), message.call, message.accepted_us, e)
        elif isinstance(message, Cancel):
            for i in message.tasks:
                states[i] = task_lifecycle.cancel(states.get(i), i, message.at_us, message.by)
        else:
            for i, attempt, at in message.tasks:
                states[i] = task_lifecycle.started(states.get(i), i, attempt, at)
    return states
