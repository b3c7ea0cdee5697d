"""Providers of Parsl by name: its Slurm provider on real Slurm, with ends that are confirmed."""

from __future__ import annotations

from pathlib import Path

import pytest

from oncue.endpoint.options.providers import ParslOptions
from oncue.endpoint.providers import confirmation
from oncue.endpoint.providers.job_catalog import job_provider
from oncue.endpoint.providers.jobs import (
    JobEnding,
    JobProvider,
    JobRequest,
    JobState,
    SubmissionRefused,
    SubmissionUnclear,
)
from tests.schedulers.waiting import wait
from tests.slurm.cluster import Cluster

pytest.importorskip("parsl", reason="needs Parsl; pip install -r requirements/dev.txt")

OPTIONS = ParslOptions(name="SlurmProvider", options={"exclusive": False, "cores_per_node": 1})


@pytest.fixture
def provider(slurm: Cluster, tmp_path: Path) -> JobProvider:
    return job_provider(OPTIONS, tmp_path / "endpoint", slurm.environ)


def test_a_job_that_parsl_says_is_completed_has_failed(
    provider: JobProvider, slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confirmation, "MISSING_S", 0.0)
    go = tmp_path / "go"
    command = f"while [ ! -e '{go}' ]; do sleep 0.05; done; exit $CODE"

    job = provider.submit(JobRequest("oncue-ab12-1", command, environment={"CODE": "3"}))
    wait(provider, job, JobState.RUNNING)
    go.touch()
    ended = wait(provider, job, JobState.ENDED)

    assert (ended.ending, ended.exit) == (JobEnding.FAILED, 3)
    secrets = [p for p in (tmp_path / "endpoint" / "jobs").iterdir() if p.is_file() and "CODE" in p.read_text()]
    assert [p.stat().st_mode & 0o077 for p in secrets] == [0] * len(secrets) != []


def test_a_restarted_agent_can_cancel_its_jobs(provider: JobProvider, slurm: Cluster, tmp_path: Path) -> None:
    job = provider.submit(JobRequest("oncue-ab12-1", "sleep 1000"))

    again = job_provider(OPTIONS, tmp_path / "endpoint", slurm.environ)
    wait(again, job, JobState.RUNNING)
    again.cancel([job])

    assert wait(again, job, JobState.ENDED).state is JobState.ENDED
    assert slurm.active_jobs() == set()


def test_a_lost_answer_is_unclear_and_a_refusal_is_not(slurm: Cluster, tmp_path: Path) -> None:
    slow = job_provider(ParslOptions(name="SlurmProvider", command_timeout_ms=3_000), tmp_path, slurm.environ)
    with slurm.faults.hanging("sbatch"), pytest.raises(SubmissionUnclear, match=r"no answer in"):
        slow.submit(JobRequest("oncue-ab12-1", "true"))
    refused = ParslOptions(name="SlurmProvider", options={"partition": "nowhere"})
    with pytest.raises(SubmissionRefused, match="Invalid partition name"):
        job_provider(refused, tmp_path, slurm.environ).submit(JobRequest("oncue-ab12-2", "true"))


def test_an_unknown_provider_is_answered_with_those_that_there_are(slurm: Cluster, tmp_path: Path) -> None:
    provider = job_provider(ParslOptions(name="SlurmProvidr"), tmp_path, slurm.environ)

    with pytest.raises(SubmissionRefused, match=r"no provider 'SlurmProvidr'; it has AWSProvider, AzureProvider"):
        provider.submit(JobRequest("oncue-ab12-1", "true"))


def test_an_unknown_option_is_refused_with_parsls_words(slurm: Cluster, tmp_path: Path) -> None:
    provider = job_provider(ParslOptions(name="SlurmProvider", options={"colour": 1}), tmp_path, slurm.environ)

    with pytest.raises(SubmissionRefused, match="unexpected keyword argument 'colour'"):
        provider.submit(JobRequest("oncue-ab12-1", "true"))
