"""Jobs that a scheduler lists no more: when they have ended, and when nobody knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from oncue.endpoint.providers.confirmation import CANCELLED, FORGOTTEN, MISSING_S, Confirmation
from oncue.endpoint.providers.job_files import JobFiles
from oncue.endpoint.providers.jobs import JobEnding, JobState, JobStatus, SchedulerAway

RUNNING = JobStatus(JobState.RUNNING)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def files(tmp_path: Path) -> JobFiles:
    return JobFiles(tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_job_that_is_not_listed_yet_has_not_ended(files: JobFiles, clock: Clock) -> None:
    confirmation = Confirmation(files, clock=clock)

    for second in range(int(MISSING_S)):
        clock.now = second
        assert confirmation.complete(["1"], {}, whole=True) == {}

    assert confirmation.complete(["1"], {"1": RUNNING}, whole=True) == {"1": RUNNING}


def test_a_job_missing_for_long_has_ended(files: JobFiles, clock: Clock) -> None:
    confirmation = Confirmation(files, clock=clock)
    confirmation.complete(["1"], {}, whole=True)
    clock.now = MISSING_S * 2

    assert confirmation.complete(["1"], {}, whole=True) == {}  # two answers are too few
    assert confirmation.complete(["1"], {}, whole=True) == {"1": FORGOTTEN}


def test_a_job_that_shows_up_again_counts_anew(files: JobFiles, clock: Clock) -> None:
    confirmation = Confirmation(files, clock=clock)
    confirmation.complete(["1"], {}, whole=True)
    confirmation.complete(["1"], {}, whole=True)
    confirmation.complete(["1"], {"1": RUNNING}, whole=True)
    clock.now = MISSING_S * 2

    assert confirmation.complete(["1"], {}, whole=True) == {}


def test_an_answer_that_is_not_whole_proves_nothing(files: JobFiles, clock: Clock) -> None:
    confirmation = Confirmation(files, clock=clock)

    for _ in range(10):
        clock.now += MISSING_S
        assert confirmation.complete(["1"], {}, whole=False) == {}


@pytest.mark.parametrize(("code", "ending"), [(0, JobEnding.COMPLETED), (3, JobEnding.FAILED)])
def test_the_exit_code_that_the_script_left_confirms_the_end(
    files: JobFiles, clock: Clock, code: int, ending: JobEnding
) -> None:
    files.bind("1", "m")
    files.write("m", ".exit", f"{code}\n")
    files.write("m", ".err", "last words\n")

    status = Confirmation(files, clock=clock).complete(["1"], {}, whole=True)["1"]

    assert (status.state, status.ending, status.exit) == (JobState.ENDED, ending, code)
    assert status.stderr_tail == "last words"


def test_the_scheduler_knows_whose_signal_it_was(files: JobFiles, clock: Clock) -> None:
    files.bind("1", "m")
    files.write("m", ".exit", "143\n")
    cancelled = JobStatus(JobState.ENDED, ending=JobEnding.CANCELLED)

    alone = Confirmation(files, clock=clock).complete(["1"], {}, whole=True)["1"]
    asked = Confirmation(files, {"1": cancelled}.get, clock=clock).complete(["1"], {}, whole=True)["1"]

    assert (alone.ending, alone.exit, alone.reason) == (JobEnding.FAILED, 143, "signal 15")
    assert (asked.ending, asked.exit) == (JobEnding.CANCELLED, 143)


def test_the_second_question_decides(files: JobFiles, clock: Clock) -> None:
    answers: list[JobStatus | Exception] = [SchedulerAway("no controller"), RUNNING]

    def ask_again(job: str) -> JobStatus:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    confirmation = Confirmation(files, ask_again, clock=clock)
    for _ in range(2):
        confirmation.complete(["1"], {}, whole=True)
        clock.now += MISSING_S

    assert confirmation.complete(["1"], {}, whole=True) == {}  # the scheduler was away
    assert confirmation.complete(["1"], {}, whole=True) == {"1": RUNNING}


def test_an_end_that_the_second_way_knows_is_confirmed_at_once(files: JobFiles, clock: Clock) -> None:
    ended = JobStatus(JobState.ENDED, ending=JobEnding.FAILED, exit=3)
    confirmation = Confirmation(files, {"1": ended}.get, at_once=True, clock=clock)

    assert confirmation.complete(["1", "2"], {}, whole=True) == {"1": ended}


def test_a_cancelled_job_that_is_gone_has_ended_soon(files: JobFiles, clock: Clock) -> None:
    confirmation = Confirmation(files, clock=clock)
    confirmation.cancelled(["1"])

    assert confirmation.complete(["1", "2"], {}, whole=True) == {}
    assert confirmation.complete(["1", "2"], {}, whole=True) == {}
    assert confirmation.complete(["1", "2"], {}, whole=True) == {"1": CANCELLED}


def test_a_cancelled_job_whose_script_was_told_was_cancelled(files: JobFiles, clock: Clock) -> None:
    files.bind("1", "m")
    files.write("m", ".exit", "143\n")
    confirmation = Confirmation(files, clock=clock)
    confirmation.cancelled(["1"])

    status = confirmation.complete(["1"], {}, whole=True)["1"]

    assert (status.ending, status.exit) == (JobEnding.CANCELLED, 143)


def test_few_jobs_are_asked_for_one_by_one(files: JobFiles, clock: Clock) -> None:
    asked: list[str] = []

    def ask_again(job: str) -> None:
        asked.append(job)

    confirmation = Confirmation(files, ask_again, clock=clock)
    jobs = [str(n) for n in range(300)]
    for _ in range(3):
        confirmation.complete(jobs, {}, whole=True)
        clock.now += MISSING_S

    assert 0 < len(asked) <= 10
