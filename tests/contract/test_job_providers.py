"""One contract for all providers of jobs: on real Slurm and Grid Engine, on stand-ins of the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from oncue.endpoint.providers import confirmation
from oncue.endpoint.providers.jobs import (
    JobEnding,
    JobRequest,
    JobState,
    SchedulerAway,
    SubmissionRefused,
    SubmissionUnclear,
)
from tests.gridengine.cell import Cell
from tests.schedulers.sites import STAND_INS, Site, StandIn, gridengine_site, slurm_site
from tests.slurm.cluster import Cluster


@pytest.fixture(params=["slurm", "gridengine", *STAND_INS])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    if request.param == "slurm":
        cluster: Cluster = request.getfixturevalue("slurm")
        yield slurm_site(cluster.environ, cluster.faults, tmp_path / "endpoint")
        return
    if request.param == "gridengine":
        cell: Cell = request.getfixturevalue("gridengine")
        yield gridengine_site(cell.environ, cell.faults, tmp_path / "endpoint")
        return
    scheduler = StandIn(request.param, tmp_path)
    yield scheduler.site
    scheduler.stop()


def until(flag: Path) -> str:
    """Return a shell command that waits until a file is there."""
    return f"while [ ! -e '{flag}' ]; do sleep 0.05; done"


def test_a_job_waits_runs_and_ends(site: Site, tmp_path: Path) -> None:
    go = tmp_path / "go"

    job = site.provider.submit(JobRequest("oncue-ab12-life", until(go)))
    running = site.wait(job, JobState.RUNNING)
    go.touch()
    ended = site.wait(job, JobState.ENDED)

    assert len(running.nodes) == 1
    assert (ended.ending, ended.exit) == (JobEnding.COMPLETED, 0)


def test_the_exit_code_and_the_last_words_are_told(site: Site) -> None:
    job = site.provider.submit(JobRequest("oncue-ab12-fails", "echo no module named oncue >&2; exit 3"))

    ended = site.wait(job, JobState.ENDED)

    assert (ended.ending, ended.exit) == (JobEnding.FAILED, 3)
    assert ended.stderr_tail == "no module named oncue"


def test_a_job_that_waits_says_why(site: Site, tmp_path: Path) -> None:
    go = tmp_path / "go"
    jobs = [site.provider.submit(JobRequest(f"oncue-ab12-w{n}", until(go))) for n in range(site.slots + 1)]
    for job in jobs[:-1]:
        site.wait(job, JobState.RUNNING)

    waiting = site.wait(jobs[-1], JobState.PENDING)

    assert waiting.reason
    go.touch()
    assert site.wait(jobs[-1], JobState.ENDED).ending is JobEnding.COMPLETED


def test_cancelled_jobs_end(site: Site, tmp_path: Path) -> None:
    jobs = [site.provider.submit(JobRequest(f"oncue-ab12-c{n}", "sleep 1000")) for n in range(2)]
    site.wait(jobs[0], JobState.RUNNING)

    site.provider.cancel([*jobs, "987654"])
    ended = [site.wait(job, JobState.ENDED) for job in jobs]
    site.provider.cancel(jobs)  # again is harmless

    assert [status.ending for status in ended] == [JobEnding.CANCELLED] * 2, ended


def test_the_environment_reaches_the_command_and_the_agents_does_not(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.environ = {**site.environ, "ONCUE_TOKEN": "secret"}
    provider = site.provider_with(worker_init="export FROM_INIT=1")
    request = JobRequest("oncue-ab12-env", f"env >'{tmp_path}/env'", environment={"FROM_REQUEST": "it's $1"})

    site.wait(provider.submit(request), JobState.ENDED)

    variables = (tmp_path / "env").read_text().splitlines()
    assert "FROM_REQUEST=it's $1" in variables
    assert "FROM_INIT=1" in variables
    assert not [v for v in variables if v.startswith("ONCUE_TOKEN")]


def test_jobs_run_in_no_login_shell(site: Site, tmp_path: Path) -> None:
    """A login shell reads the profile of whoever runs these tests."""
    init = f"shopt -q login_shell && echo login >'{tmp_path}/shell' || echo plain >'{tmp_path}/shell'"
    provider = site.provider_with(worker_init=init)

    site.wait(provider.submit(JobRequest("oncue-ab12-plain", "true")), JobState.ENDED)

    assert (tmp_path / "shell").read_text() == "plain\n"


def test_a_submission_whose_answer_was_lost_is_found_by_its_mark(site: Site, tmp_path: Path) -> None:
    go = tmp_path / "go"
    provider = site.provider_with(command_timeout_ms=1_500)
    command = site.commands[0]
    with site.faults.answer_lost(command) as calls, pytest.raises(SubmissionUnclear, match=f"{command}: no answer"):
        provider.submit(JobRequest("oncue-ab12-lost", f"{until(go)}; exit 4"))

    job = site.wait_found("oncue-ab12-lost")
    go.touch()

    assert site.wait(job, JobState.ENDED).exit == 4
    assert len(calls.read_text().splitlines()) == 1


def test_a_submission_that_hangs_is_given_up_and_nothing_is_found(site: Site) -> None:
    provider = site.provider_with(command_timeout_ms=500)
    with site.faults.hanging(site.commands[0]), pytest.raises(SubmissionUnclear):
        provider.submit(JobRequest("oncue-ab12-hangs", "true"))

    assert site.provider.find(["oncue-ab12-hangs"]) == {}


def test_a_refusal_has_the_schedulers_words(site: Site) -> None:
    with pytest.raises(SubmissionRefused, match=f"^{site.commands[0]}: .*") as raised:
        site.provider_with(**site.refused).submit(JobRequest("oncue-ab12-refused", "true"))

    assert "endpoint.yaml" in raised.value.remedy
    assert site.provider.find(["oncue-ab12-refused"]) == {}


def test_a_restarted_agent_knows_its_jobs(site: Site, tmp_path: Path) -> None:
    go = tmp_path / "go"
    job = site.provider.submit(JobRequest("oncue-ab12-old", f"{until(go)}; echo why >&2; exit 5"))

    site.provider = site.provider_with()
    site.wait(job, JobState.RUNNING)
    go.touch()
    ended = site.wait(job, JobState.ENDED)

    assert (ended.exit, ended.stderr_tail) == (5, "why")


def test_a_scheduler_that_is_away_ends_no_job(site: Site) -> None:
    job = site.provider.submit(JobRequest("oncue-ab12-away", "sleep 1000"))
    site.wait(job, JobState.RUNNING)
    submit, listing, cancel = site.commands

    with site.faults.refusing(listing, site.away), pytest.raises(SchedulerAway):
        site.provider.jobs([job])
    with site.faults.hanging(listing), pytest.raises(SchedulerAway, match="no answer in"):
        site.provider_with(command_timeout_ms=500).jobs([job])
    with site.faults.refusing(cancel, site.away), pytest.raises(SchedulerAway):
        site.provider.cancel([job])
    with site.faults.refusing(submit, site.away), pytest.raises(SchedulerAway):
        site.provider.submit(JobRequest("oncue-ab12-away2", "true"))

    assert site.wait(job, JobState.RUNNING).state is JobState.RUNNING
    site.provider.cancel([job])


GARBAGE = ("Welcome to Big Iron!\nMaintenance on Monday.\n", "{", "\x01\xff\n", "<html></p>")


def test_garbage_ends_no_job(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confirmation, "MISSING_S", 0.0)
    job = site.provider.submit(JobRequest("oncue-ab12-garbage", "sleep 1000"))
    site.wait(job, JobState.RUNNING)

    for garbage in GARBAGE:
        with site.faults.babbling(site.commands[1], garbage):
            for _ in range(confirmation.ANSWERS + 1):
                with pytest.raises(SchedulerAway, match="is not understood"):
                    site.provider.jobs([job])

    assert site.wait(job, JobState.RUNNING).state is JobState.RUNNING
    site.provider.cancel([job])


def test_an_unknown_job_is_unknown_first_and_ended_in_the_end(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    assert site.provider.jobs(["987654"]) == {}
    monkeypatch.setattr(confirmation, "MISSING_S", 0.0)

    ended = site.wait("987654", JobState.ENDED)

    assert (ended.ending, ended.exit) == (JobEnding.UNKNOWN, None)


def test_hundreds_of_jobs_are_asked_for_at_once(site: Site) -> None:
    jobs = [site.provider.submit(JobRequest(f"oncue-ab12-m{n}", "sleep 1000")) for n in range(4)]
    others = [str(900_000 + n) for n in range(496)]

    with site.faults.counted(site.commands[1]) as calls:
        known = site.provider.jobs([*jobs, *others])

    assert set(known) == set(jobs)
    assert len(calls.read_text().splitlines()) == 1
    site.provider.cancel(jobs)
