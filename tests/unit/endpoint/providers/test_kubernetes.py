"""Jobs of Kubernetes through a stand-in of kubectl that answers with its objects."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest

from oncue.endpoint.options.providers import KubernetesOptions
from oncue.endpoint.providers.job_catalog import job_provider
from oncue.endpoint.providers.jobs import (
    JobEnding,
    JobProvider,
    JobRequest,
    JobState,
    SchedulerAway,
    SubmissionRefused,
    SubmissionUnclear,
)
from oncue.endpoint.providers.kubernetes import manifests
from tests.schedulers import kubectl, waiting
from tests.schedulers.faults import CommandFaults

wait = partial(waiting.wait, limit_s=30.0)
OPTIONS = KubernetesOptions(image="site/oncue:1", command_timeout_ms=20_000)
MARK = "oncue-ab12-1"


class Kube:
    """The stand-in, with its files."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "cluster"
        for name in ("jobs", "secrets", "logs"):
            (self.home / name).mkdir(parents=True)
        commands = folder / "commands"
        commands.mkdir()
        interpreter = f"{shlex.quote(sys.executable)} -S -E {shlex.quote(kubectl.__file__)}"
        (commands / "kubectl").write_text(
            f'#!/bin/sh\nexport STAND_IN={shlex.quote(str(self.home))}\nexec {interpreter} "$@"\n'
        )
        (commands / "kubectl").chmod(0o755)
        path = f"{commands}:{os.environ['PATH']}"
        self.faults = CommandFaults(folder / "faults", path)
        self.environ = os.environ | {"PATH": f"{self.faults.folder}:{path}"}

    def stop(self) -> None:
        for file in (self.home / "jobs").iterdir():
            if pid := json.loads(file.read_text())["pid"]:
                try:
                    os.killpg(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue


@pytest.fixture
def kube(tmp_path: Path) -> Iterator[Kube]:
    found = Kube(tmp_path)
    yield found
    found.stop()


@pytest.fixture
def provider(kube: Kube, tmp_path: Path) -> JobProvider:
    return job_provider(OPTIONS, tmp_path / "endpoint", kube.environ)


def test_a_job_waits_runs_and_fails_with_its_last_words(kube: Kube, provider: JobProvider, tmp_path: Path) -> None:
    go = tmp_path / "go"
    command = f"while [ ! -e '{go}' ]; do sleep 0.05; done; echo $WORDS; exit 3"

    job = provider.submit(JobRequest(MARK, command, environment={"WORDS": "it's over"}))
    running = wait(provider, job, JobState.RUNNING)
    assert (kube.home / "secrets" / MARK).exists()
    go.touch()
    ended = wait(provider, job, JobState.ENDED)

    assert running.nodes == ("node01",)
    assert (ended.ending, ended.exit, ended.stderr_tail) == (JobEnding.FAILED, 3, "it's over")
    assert not (kube.home / "secrets" / MARK).exists()


def test_a_job_deleted_by_somebody_else_has_ended(kube: Kube, provider: JobProvider) -> None:
    job = provider.submit(JobRequest(MARK, "sleep 1000"))
    wait(provider, job, JobState.RUNNING)
    pid = json.loads((kube.home / "jobs" / job).read_text())["pid"]
    (kube.home / "jobs" / job).unlink()
    os.killpg(pid, signal.SIGKILL)

    ended = provider.jobs([job])[job]

    assert (ended.state, ended.ending, ended.reason) == (JobState.ENDED, JobEnding.CANCELLED, "the Job was deleted")


def test_a_cancelled_job_ends(provider: JobProvider) -> None:
    job = provider.submit(JobRequest(MARK, "sleep 1000"))
    wait(provider, job, JobState.RUNNING)

    provider.cancel([job, "oncue-ab12-none"])

    assert wait(provider, job, JobState.ENDED).ending is JobEnding.CANCELLED


def test_the_same_mark_is_never_submitted_twice(kube: Kube, tmp_path: Path) -> None:
    hasty = job_provider(msgspec.structs.replace(OPTIONS, command_timeout_ms=500), tmp_path, kube.environ)
    with kube.faults.answer_lost("kubectl"), pytest.raises(SubmissionUnclear, match="kubectl: no answer"):
        hasty.submit(JobRequest(MARK, "sleep 1000"))
    provider = job_provider(OPTIONS, tmp_path, kube.environ)
    wait(provider, MARK, JobState.RUNNING)

    with pytest.raises(SubmissionUnclear, match="AlreadyExists"):
        provider.submit(JobRequest(MARK, "sleep 1000"))

    assert provider.find([MARK, "oncue-ab12-none"]) == {MARK: MARK}


def test_refusals_garbage_and_an_api_that_is_away(kube: Kube, provider: JobProvider, tmp_path: Path) -> None:
    refused = job_provider(KubernetesOptions(image="nowhere"), tmp_path, kube.environ)
    with pytest.raises(SubmissionRefused, match="exceeded quota"):
        refused.submit(JobRequest(MARK, "true"))
    for garbage in ("{", '{"items": [1]}', '{"items": null}', "[]"):
        with (
            kube.faults.babbling("kubectl", garbage),
            pytest.raises(SchedulerAway, match="is not understood"),
        ):
            provider.jobs([MARK])
    validating = 'error: error validating "STDIN": error validating data: Get "https://h:6443/openapi/v2": dial tcp'
    with (
        kube.faults.refusing("kubectl", f"{validating} 127.0.0.1:6443: connect: connection refused; if you choose to"),
        pytest.raises(SchedulerAway, match="connection refused") as raised,
    ):
        provider.submit(JobRequest(MARK, "true"))
    assert not isinstance(raised.value, SubmissionRefused | SubmissionUnclear), "nothing was submitted"
    broke = 'error: Post "https://h:6443/apis/batch/v1/namespaces/default/jobs": unexpected EOF'
    with kube.faults.refusing("kubectl", broke), pytest.raises(SubmissionUnclear, match="EOF"):
        provider.submit(JobRequest(MARK, "true"))
    away = "The connection to the server 127.0.0.1:6443 was refused - did you specify the right host or port?"
    with kube.faults.refusing("kubectl", away), pytest.raises(SchedulerAway, match="was refused"):
        provider.submit(JobRequest(MARK, "true"))


def test_a_pod_is_not_restarted_and_secrets_are_not_in_its_job() -> None:
    request = JobRequest(MARK, "run it", nodes=2, walltime_s=60, environment={"SECRET": "s3"}, cores=2, gpus=1)
    options = KubernetesOptions(image="i", volumes={"data": "/data"}, memory_per_node=1 << 30, service_account="me")

    secret, job = manifests(request, options)

    spec = job["spec"]["template"]["spec"]
    container = spec["containers"][0]
    assert (job["spec"]["backoffLimitPerIndex"], spec["restartPolicy"]) == (0, "Never")
    assert manifests(JobRequest(MARK, "run it"), options)[1]["spec"]["backoffLimit"] == 0
    assert (job["spec"]["parallelism"], job["spec"]["activeDeadlineSeconds"]) == (2, 60)
    assert container["resources"]["limits"] == {"cpu": "2", "memory": str(1 << 30), "nvidia.com/gpu": "1"}
    assert secret["stringData"] == {"SECRET": "s3"}
    assert "s3" not in json.dumps(job)
