"""The thread that calls a provider of jobs: events, merged calls, pauses, an end within bounds."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from oncue.endpoint.providers.job_events import (
    JobEvent,
    JobsCancelled,
    JobsPolled,
    MarksSearched,
    SubmitFailed,
    Submitted,
)
from oncue.endpoint.providers.job_thread import JobThread, Pauses
from oncue.endpoint.providers.jobs import (
    JobRequest,
    JobState,
    JobStatus,
    SchedulerAway,
    SubmissionRefused,
    SubmissionUnclear,
)

LIMIT_S = 20
SHORT = Pauses(first_s=0.01, longest_s=0.02)
LONG = Pauses(first_s=3600.0, longest_s=3600.0)


class Scheduler:
    """Answers at once; `troubles` are raised first, by name of the method."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[str, ...]]] = []
        self.troubles: dict[str, list[Exception]] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.busy = threading.Event()

    def _called(self, name: str, what: Sequence[str]) -> None:
        self.calls.append((name, tuple(what)))
        self.busy.set()
        assert self.gate.wait(LIMIT_S)
        if self.troubles.get(name):
            raise self.troubles[name].pop(0)

    def submit(self, request: JobRequest) -> str:
        self._called("submit", [request.mark])
        return f"job of {request.mark}"

    def jobs(self, ids: Sequence[str]) -> dict[str, JobStatus]:
        self._called("jobs", ids)
        return {i: JobStatus(JobState.RUNNING) for i in ids}

    def find(self, marks: Sequence[str]) -> dict[str, str]:
        self._called("find", marks)
        return {m: f"job of {m}" for m in marks if m != "lost"}

    def cancel(self, ids: Sequence[str]) -> None:
        self._called("cancel", ids)


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler()


@pytest.fixture
def started(scheduler: Scheduler) -> Iterator[Callable[[Pauses], JobThread]]:
    threads: list[JobThread] = []

    def start(pauses: Pauses = SHORT) -> JobThread:
        threads.append(JobThread(scheduler, pauses))
        return threads[-1]

    yield start
    scheduler.gate.set()
    for thread in threads:
        assert thread.close(LIMIT_S)


def wait(thread: JobThread, count: int = 1) -> list[JobEvent]:
    """Return the next events, as the loop gets them: woken by the descriptor."""
    events: list[JobEvent] = []
    while len(events) < count:
        readable, _, _ = select.select([thread.fd], [], [], LIMIT_S)
        assert readable, f"no event in {LIMIT_S} s; there were {events}"
        events += thread.drain()
    return events


def test_every_call_is_answered_by_its_event(started: Callable[..., JobThread]) -> None:
    thread = started()

    thread.submit(JobRequest("a", "true"))
    assert wait(thread) == [Submitted("a", "job of a")]
    thread.poll(["1", "2"])
    assert wait(thread) == [JobsPolled({"1": JobStatus(JobState.RUNNING), "2": JobStatus(JobState.RUNNING)})]
    thread.find(["a", "lost"])
    assert wait(thread) == [MarksSearched({"a": "job of a"}, ("lost",))]
    thread.cancel(["1"])
    assert wait(thread) == [JobsCancelled(("1",))]
    assert thread.trouble() == ""


def test_a_slow_scheduler_is_asked_once_for_all_that_waited(
    scheduler: Scheduler, started: Callable[..., JobThread]
) -> None:
    thread = started()
    scheduler.gate.clear()
    thread.poll(["1"])
    assert scheduler.busy.wait(LIMIT_S)

    for i in range(500):
        thread.poll([str(i)])
    scheduler.gate.set()
    wait(thread, 2)

    assert scheduler.calls == [("jobs", ("1",)), ("jobs", tuple(str(i) for i in range(500)))]


def test_kinds_of_calls_take_turns(scheduler: Scheduler, started: Callable[..., JobThread]) -> None:
    thread = started()
    scheduler.gate.clear()
    thread.submit(JobRequest("a", "true"))
    assert scheduler.busy.wait(LIMIT_S)

    for mark in "bcd":
        thread.submit(JobRequest(mark, "true"))
    thread.poll(["1"])
    thread.cancel(["2"])
    scheduler.gate.set()
    wait(thread, 6)

    assert [name for name, _ in scheduler.calls][:4] == ["submit", "jobs", "cancel", "submit"]


def test_polls_go_on_by_themselves_when_the_scheduler_is_back(
    scheduler: Scheduler, started: Callable[..., JobThread]
) -> None:
    scheduler.troubles["jobs"] = [SchedulerAway("no controller", command="squeue")] * 3
    thread = started()

    thread.poll(["1"])

    assert wait(thread) == [JobsPolled({"1": JobStatus(JobState.RUNNING)})]
    assert scheduler.calls == [("jobs", ("1",))] * 4
    assert thread.trouble() == ""


def test_trouble_names_the_command_its_reason_and_the_next_try(
    scheduler: Scheduler, started: Callable[..., JobThread]
) -> None:
    scheduler.troubles["jobs"] = [SchedulerAway("no controller", command="squeue")]
    thread = started(LONG)

    thread.poll(["1"])
    thread.submit(JobRequest("a", "true"))
    wait(thread)
    thread.submit(JobRequest("b", "true"))
    wait(thread)

    assert thread.trouble().startswith("squeue failed once: no controller; next try in ")
    assert thread.trouble().endswith(" min")

    thread.retry_now()
    assert wait(thread) == [JobsPolled({"1": JobStatus(JobState.RUNNING)})]


@pytest.mark.parametrize(
    ("trouble", "expected"),
    [
        (SchedulerAway("no controller", command="sbatch"), SubmitFailed("a", "no controller", "sbatch", True)),
        (SubmissionRefused("no such partition"), SubmitFailed("a", "no such partition")),
        (SubmissionUnclear("no answer"), SubmitFailed("a", "no answer", transient=True, unclear=True)),
        (ValueError("a mistake"), SubmitFailed("a", "ValueError('a mistake')", transient=True, unclear=True)),
    ],
)
def test_a_failed_submission_is_not_tried_again_by_the_thread(
    scheduler: Scheduler, started: Callable[..., JobThread], trouble: Exception, expected: SubmitFailed
) -> None:
    scheduler.troubles["submit"] = [trouble]
    thread = started()

    thread.submit(JobRequest("a", "true"))
    assert wait(thread) == [expected]
    thread.submit(JobRequest("b", "true"))
    wait(thread)

    assert scheduler.calls == [("submit", ("a",)), ("submit", ("b",))]


def test_pauses_grow_to_their_limit() -> None:
    pauses = Pauses(first_s=2.0, longest_s=60.0)

    assert [pauses.after(n, 1.0) for n in (1, 2, 3, 6, 1000)] == [2, 4, 8, 60, 60]
    assert pauses.after(1, 0.0) == 1.5


def test_an_end_does_not_wait_for_a_scheduler_that_hangs(scheduler: Scheduler) -> None:
    thread = JobThread(scheduler, SHORT)
    scheduler.gate.clear()
    thread.poll(["1"])
    assert scheduler.busy.wait(LIMIT_S)

    assert not thread.close(0.01)

    scheduler.gate.set()
    assert thread.close(LIMIT_S)
