"""Jobs of real Slurm, and the faults of a real cluster."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from oncue.endpoint.options.providers import SlurmOptions
from oncue.endpoint.providers import confirmation
from oncue.endpoint.providers.job_events import JobEvent, JobsPolled
from oncue.endpoint.providers.job_files import JobFiles
from oncue.endpoint.providers.job_thread import JobThread, Pauses
from oncue.endpoint.providers.jobs import JobEnding, JobRequest, JobState, JobStatus, SchedulerAway
from oncue.endpoint.providers.slurm import SlurmProvider
from tests.conftest import or_skipped
from tests.schedulers.waiting import LIMIT_S
from tests.schedulers.waiting import wait as poll
from tests.slurm.cluster import Cluster

OPTIONS = SlurmOptions(exclusive=False, launcher="simple", cores_per_node=1, command_timeout_ms=20_000)


@pytest.fixture
def files(tmp_path: Path) -> JobFiles:
    return JobFiles(tmp_path / "jobs")


@pytest.fixture
def provider(slurm: Cluster, files: JobFiles) -> SlurmProvider:
    return SlurmProvider(OPTIONS, files, slurm.environ)


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A controller that forgets ended jobs after seconds."""
    with or_skipped("Slurm"):
        cluster = Cluster(tmp_path_factory.mktemp("forgetful"), nodes=1, remember_s=2)
    try:
        yield cluster.start()
    finally:
        cluster.stop()


def wait(provider: SlurmProvider, job: str, *states: JobState) -> JobStatus:
    """Poll a job until it is in one of these states, also while the scheduler is away."""
    return poll(provider, job, *states, may_be_away=True)


def until(reached: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + LIMIT_S
    while not reached():
        assert time.monotonic() < end, f"not in {LIMIT_S:.0f} s: {what}"
        time.sleep(0.1)


def test_a_job_cancelled_under_us_has_ended(slurm: Cluster, provider: SlurmProvider) -> None:
    job = provider.submit(JobRequest("oncue-ab12-1", "sleep 1000"))
    wait(provider, job, JobState.RUNNING)

    slurm.cancel(job)
    ended = wait(provider, job, JobState.ENDED)

    assert (ended.ending, ended.native) == (JobEnding.CANCELLED, "CANCELLED")


def test_the_output_is_found_in_a_folder_with_any_name(slurm: Cluster, tmp_path: Path) -> None:
    provider = SlurmProvider(OPTIONS, JobFiles(tmp_path / 'my 100% "job\'s" %j'), slurm.environ)

    ended = wait(provider, provider.submit(JobRequest("oncue-ab12-1", "echo why >&2; exit 3")), JobState.ENDED)

    assert (ended.exit, ended.stderr_tail) == (3, "why")


def test_a_lost_node_ends_its_job_and_it_is_not_run_again(slurm: Cluster, provider: SlurmProvider) -> None:
    job = provider.submit(JobRequest("oncue-ab12-1", "sleep 1000"))
    node = wait(provider, job, JobState.RUNNING).nodes[0]

    slurm.kill_node(node)
    ended = wait(provider, job, JobState.ENDED)

    assert (ended.ending, ended.native, ended.nodes) == (JobEnding.NODE, "NODE_FAIL", (node,))
    slurm.start_node(node)
    assert wait(provider, job, JobState.ENDED) == ended
    assert not slurm.active_jobs()


def test_a_restart_of_the_controller_ends_no_job(slurm: Cluster, provider: SlurmProvider) -> None:
    job = provider.submit(JobRequest("oncue-ab12-1", "sleep 1000"))
    running = wait(provider, job, JobState.RUNNING)

    slurm.stop_controller()
    with pytest.raises(SchedulerAway, match=r"^squeue: .*[Uu]nable to contact slurm controller"):
        provider.jobs([job])
    with pytest.raises(SchedulerAway, match=r"^sbatch: .*[Uu]nable to contact slurm controller"):
        provider.submit(JobRequest("oncue-ab12-2", "true"))
    slurm.start_controller()

    assert wait(provider, job, JobState.RUNNING).nodes == running.nodes
    assert provider.find(["oncue-ab12-2"]) == {}


def test_a_controller_that_is_killed_behind_a_submission_starts_its_job_at_most_once(
    slurm: Cluster, files: JobFiles, tmp_path: Path
) -> None:
    """A job that may be requeued could be started again, while the first one runs still."""
    environ = {**slurm.environ, "SBATCH_REQUEUE": "1"}  # as some sites set it
    options = msgspec.structs.replace(OPTIONS, scheduler_options="#SBATCH --requeue")
    provider = SlurmProvider(options, files, environ)
    for n in range(3):
        job = provider.submit(JobRequest(f"oncue-ab12-{n}", f"echo began >>{tmp_path}/{n}; sleep 1000"))
        slurm.kill_controller()
        slurm.start_controller()

        listed = slurm.jobs()
        if job in listed:  # else it was not saved, and slurmd ends it
            assert "Requeue=0" in slurm.run("scontrol", "show", "job", job)
            assert wait(provider, job, JobState.RUNNING, JobState.ENDED)
            assert provider.find([f"oncue-ab12-{n}"]) == {f"oncue-ab12-{n}": job}
        slurm.mend()
        begun = (tmp_path / str(n)).read_text() if (tmp_path / str(n)).exists() else ""
        assert begun.count("began") <= 1


def test_a_thread_goes_on_by_itself_when_the_controller_is_back(slurm: Cluster, provider: SlurmProvider) -> None:
    job = provider.submit(JobRequest("oncue-ab12-1", "sleep 1000"))
    wait(provider, job, JobState.RUNNING)
    thread = JobThread(provider, Pauses(first_s=0.1, longest_s=0.5))
    try:
        slurm.stop_controller()
        thread.poll([job])
        until(lambda: "squeue failed" in thread.trouble(), "the thread says that squeue fails")
        slurm.start_controller()
        events: list[JobEvent] = []
        while not events:
            assert select.select([thread.fd], [], [], LIMIT_S)[0]
            events += thread.drain()
    finally:
        assert thread.close(LIMIT_S)

    assert isinstance(events[0], JobsPolled)
    assert events[0].jobs[job].state is JobState.RUNNING
    assert thread.trouble() == ""


def test_a_job_that_cannot_begin_says_why(slurm: Cluster, provider: SlurmProvider, files: JobFiles) -> None:
    whole = SlurmProvider(SlurmOptions(launcher="simple"), files, slurm.environ)
    jobs = [whole.submit(JobRequest(f"oncue-ab12-{n}", "sleep 1000")) for n in range(3)]
    for job in jobs[:2]:
        wait(whole, job, JobState.RUNNING)

    waiting = wait(whole, jobs[2], JobState.PENDING)

    assert waiting.native == "PENDING"
    assert waiting.reason.split(";")[0] in ("Resources", "Priority")


def test_the_launcher_starts_one_process_on_each_node(slurm: Cluster, files: JobFiles, tmp_path: Path) -> None:
    options = SlurmOptions(command_timeout_ms=20_000)  # srun, whole nodes
    provider = SlurmProvider(options, files, slurm.environ)
    command = f'echo "$SECRET" >{tmp_path}/"$SLURMD_NODENAME.$SLURM_PROCID"'

    job = provider.submit(JobRequest("oncue-ab12-1", command, nodes=2, environment={"SECRET": "it's"}))
    ended = wait(provider, job, JobState.ENDED)

    assert (ended.ending, sorted(ended.nodes)) == (JobEnding.COMPLETED, ["n1", "n2"]), ended.stderr_tail
    assert sorted(p.name for p in tmp_path.glob("n*")) == ["n1.0", "n2.1"]
    assert (tmp_path / "n1.0").read_text() == "it's\n"


def test_a_node_that_is_lost_costs_what_ran_there_and_not_the_block(
    slurm: Cluster, files: JobFiles, tmp_path: Path
) -> None:
    provider = SlurmProvider(SlurmOptions(command_timeout_ms=20_000), files, slurm.environ)
    command = f'echo $$ >{tmp_path}/"$SLURMD_NODENAME"; while :; do sleep 0.2; done'
    job = provider.submit(JobRequest("oncue-ab12-1", command, nodes=2))
    until(lambda: len(list(tmp_path.glob("n?"))) == 2, "the command runs on both nodes")
    other = int((tmp_path / "n1").read_text())

    slurm.kill_node("n2")  # n1 has the job's script
    slurm.wait_nodes("down", "n2")

    assert wait(provider, job, JobState.RUNNING).state is JobState.RUNNING
    assert other in slurm.node_processes("n1")


def test_a_forgotten_job_has_the_exit_code_that_its_script_left(forgetful: Cluster, files: JobFiles) -> None:
    provider = SlurmProvider(OPTIONS, files, forgetful.environ)
    job = provider.submit(JobRequest("oncue-ab12-1", "echo broken >&2; exit 3"))
    until(lambda: job not in forgetful.jobs(), "the controller has forgotten the job")

    ended = provider.jobs([job])[job]

    assert (ended.state, ended.ending, ended.exit) == (JobState.ENDED, JobEnding.FAILED, 3)
    assert ended.stderr_tail == "broken"


def test_sacct_is_never_asked_for_hundreds(
    slurm: Cluster, provider: SlurmProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confirmation, "MISSING_S", 0.0)
    jobs = [provider.submit(JobRequest(f"oncue-ab12-{n}", "sleep 1000")) for n in range(100)]
    forgotten = [str(900_000 + n) for n in range(200)]

    with slurm.faults.counted("squeue") as squeues, slurm.faults.counted("sacct") as saccts:
        for _ in range(2):
            known = provider.jobs([*jobs, *forgotten])
        assert set(known) == set(jobs)
        assert saccts.read_text() == ""
        known = provider.jobs([*jobs, *forgotten])

    assert len(squeues.read_text().splitlines()) == 3
    assert len(saccts.read_text().splitlines()) == len(known) - len(jobs) == confirmation.MOST_QUESTIONS


def test_a_sacct_that_hangs_holds_up_nobody_for_long(
    slurm: Cluster, provider: SlurmProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confirmation, "MISSING_S", 0.0)
    monkeypatch.setattr("oncue.endpoint.providers.slurm._SACCT_S", 0.2)
    with slurm.faults.hanging("sacct") as calls:
        ended = wait(provider, "987654", JobState.ENDED)

    assert ended.ending is JobEnding.UNKNOWN
    assert len(calls.read_text().splitlines()) == 1
