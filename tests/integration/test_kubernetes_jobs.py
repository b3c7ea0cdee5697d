"""Jobs of a real Kubernetes API, controllers and scheduler. Optional: `make kubernetes`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
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
from tests.kubernetes.cluster import Cluster
from tests.schedulers import waiting

wait = partial(waiting.wait, limit_s=120.0)
OPTIONS = KubernetesOptions(image="none", cores_per_node=1, command_timeout_ms=60_000)
SLOTS = 4  # of the node


@pytest.fixture
def provider(kubernetes: Cluster, tmp_path: Path) -> JobProvider:
    return job_provider(OPTIONS, tmp_path / "endpoint", kubernetes.environ)


def until(flag: Path) -> str:
    return f"while [ ! -e '{flag}' ]; do sleep 0.05; done"


def await_true(reached: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def test_a_job_runs_with_its_secret_and_fails_with_its_last_words(
    kubernetes: Cluster, provider: JobProvider, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    command = f"{until(go)}; echo $WORDS; exit 3"

    job = provider.submit(JobRequest("oncue-ab12-1", command, environment={"WORDS": "it's over"}))
    running = wait(provider, job, JobState.RUNNING)
    assert kubernetes.kubectl("get", "secret", job, "--output=name").strip() == f"secret/{job}"
    go.touch()
    ended = wait(provider, job, JobState.ENDED)

    assert running.nodes == ("node01",)
    assert (ended.ending, ended.exit, ended.stderr_tail) == (JobEnding.FAILED, 3, "it's over")
    assert len(kubernetes.pods_of(job)) == 1, "it was not tried again"
    assert not kubernetes.kubectl("get", "secret", job, "--ignore-not-found")


def test_a_job_that_ends_by_itself_is_complete(provider: JobProvider) -> None:
    job = provider.submit(JobRequest("oncue-ab12-1", "true"))

    ended = wait(provider, job, JobState.ENDED)

    assert (ended.ending, ended.exit) == (JobEnding.COMPLETED, 0)


def test_a_job_that_waits_says_why(provider: JobProvider, tmp_path: Path) -> None:
    go = tmp_path / "go"
    jobs = [provider.submit(JobRequest(f"oncue-ab12-{n}", until(go))) for n in range(SLOTS + 1)]
    for job in jobs[:-1]:
        wait(provider, job, JobState.RUNNING)

    await_true(lambda: "Insufficient cpu" in provider.jobs([jobs[-1]])[jobs[-1]].reason, "the scheduler's reason")
    go.touch()

    assert wait(provider, jobs[-1], JobState.ENDED).ending is JobEnding.COMPLETED


def test_a_cancelled_job_leaves_nothing(kubernetes: Cluster, provider: JobProvider) -> None:
    job = provider.submit(JobRequest("oncue-ab12-1", "sleep 1000"))
    wait(provider, job, JobState.RUNNING)

    provider.cancel([job, "oncue-ab12-none"])
    ended = wait(provider, job, JobState.ENDED)
    provider.cancel([job])  # again is harmless

    assert ended.ending is JobEnding.CANCELLED
    await_true(lambda: not kubernetes.items("jobs,pods,secrets"), "pods and secrets are deleted")


def test_a_job_deleted_by_somebody_else_has_ended(kubernetes: Cluster, provider: JobProvider) -> None:
    job = provider.submit(JobRequest("oncue-ab12-1", "sleep 1000"))
    wait(provider, job, JobState.RUNNING)
    kubernetes.kubectl("delete", "job", job, "--wait=false")

    ended = wait(provider, job, JobState.ENDED)

    assert (ended.ending, ended.reason) == (JobEnding.CANCELLED, "the Job was deleted")


def test_a_lost_answer_is_found_by_its_mark_and_never_doubled(
    kubernetes: Cluster, provider: JobProvider, tmp_path: Path
) -> None:
    hasty = job_provider(msgspec.structs.replace(OPTIONS, command_timeout_ms=2_000), tmp_path, kubernetes.environ)
    request = JobRequest("oncue-ab12-1", "sleep 1000")
    with kubernetes.faults.answer_lost("kubectl"), pytest.raises(SubmissionUnclear, match="kubectl: no answer"):
        hasty.submit(request)
    await_true(lambda: provider.find([request.mark]), "the job is found by its mark")
    wait(provider, request.mark, JobState.RUNNING)

    with pytest.raises(SubmissionUnclear, match="AlreadyExists"):
        provider.submit(request)

    assert provider.find([request.mark, "oncue-ab12-none"]) == {request.mark: request.mark}
    assert len(kubernetes.items("jobs")) == 1


def test_a_refusal_has_the_api_servers_words(kubernetes: Cluster, tmp_path: Path) -> None:
    for options, words in (
        (KubernetesOptions(image="none", namespace="nowhere"), "namespaces .* not found"),
        (KubernetesOptions(image="none", service_account="Not_Valid"), "Invalid value"),
    ):
        refused = job_provider(options, tmp_path, kubernetes.environ)
        with pytest.raises(SubmissionRefused, match=words):
            refused.submit(JobRequest("oncue-ab12-1", "true"))
    assert not kubernetes.items("jobs")


def test_walltime_ends_a_job(provider: JobProvider) -> None:
    job = provider.submit(JobRequest("oncue-ab12-1", "sleep 1000", walltime_s=3))

    assert wait(provider, job, JobState.ENDED).ending is JobEnding.WALLTIME


def test_a_node_of_a_block_that_fails_does_not_end_the_others(
    kubernetes: Cluster, provider: JobProvider, tmp_path: Path
) -> None:
    go, one = tmp_path / "go", tmp_path / "one"
    # The first of the two pods dies.
    command = f"if mkdir '{one}' 2>/dev/null; then exit 7; fi; {until(go)}; touch '{tmp_path}/other'"

    job = provider.submit(JobRequest("oncue-ab12-1", command, nodes=2))
    failed = lambda: [p for p in kubernetes.items("pods") if p["status"]["phase"] == "Failed"]  # noqa: E731
    await_true(failed, "one pod has failed")
    for _ in range(10):  # the Job's controller sees it meanwhile
        assert provider.jobs([job])[job].state is JobState.RUNNING
        time.sleep(0.2)
    go.touch()
    ended = wait(provider, job, JobState.ENDED)

    assert (tmp_path / "other").exists()
    assert (ended.ending, ended.exit) == (JobEnding.FAILED, 7)
    assert len(kubernetes.pods_of(job)) == 2, "none was started again"


def test_an_api_that_is_away_ends_no_job(kubernetes: Cluster, provider: JobProvider) -> None:
    job = provider.submit(JobRequest("oncue-ab12-1", "sleep 1000"))
    wait(provider, job, JobState.RUNNING)
    kubernetes.stop_api()
    with pytest.raises(SchedulerAway, match="refused"):
        provider.jobs([job])
    with pytest.raises(SchedulerAway, match="refused"):
        provider.submit(JobRequest("oncue-ab12-2", "true"))

    kubernetes.start_api()

    assert wait(provider, job, JobState.RUNNING, may_be_away=True).state is JobState.RUNNING


def test_the_role_of_the_manifests_is_enough(kubernetes: Cluster, tmp_path: Path) -> None:
    manifests = Path(__file__).parents[2] / "compose" / "kubernetes" / "endpoint.yaml"
    kubernetes.kubectl("apply", f"--filename={manifests}")
    token = kubernetes.kubectl("create", "token", "oncue-endpoint", "--namespace=oncue").strip()
    kubernetes.write_config(tmp_path / "config", token)
    environ = kubernetes.environ | {"KUBECONFIG": str(tmp_path / "config")}
    provider = job_provider(msgspec.structs.replace(OPTIONS, namespace="oncue"), tmp_path, environ)

    job = provider.submit(JobRequest("oncue-ab12-1", "echo why; exit 3", environment={"SECRET": "s"}))
    ended = wait(provider, job, JobState.ENDED)
    provider.cancel([job])
    elsewhere = job_provider(OPTIONS, tmp_path / "default", environ)
    with pytest.raises(SubmissionRefused, match="forbidden"):
        elsewhere.submit(JobRequest("oncue-ab12-2", "true"))

    assert (ended.exit, ended.stderr_tail) == (3, "why")
    kubernetes.kubectl("delete", f"--filename={manifests}", "--wait=false")


def test_tasks_find_no_token_of_the_cluster(kubernetes: Cluster, provider: JobProvider) -> None:
    job = provider.submit(JobRequest("oncue-ab12-1", "sleep 1000"))
    wait(provider, job, JobState.RUNNING)

    (pod,) = kubernetes.items("pods")

    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["spec"]["enableServiceLinks"] is False
    assert "serviceaccount" not in json.dumps(pod["spec"].get("volumes", []))
