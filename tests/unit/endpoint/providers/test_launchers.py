"""Launchers, by stand-ins that read their arguments as the real programs do, and start the processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from oncue.endpoint.options.providers import TorqueOptions
from oncue.endpoint.providers.job_catalog import job_provider
from oncue.endpoint.providers.job_files import JobFiles
from oncue.endpoint.providers.job_script import LaunchOptions, write_script
from oncue.endpoint.providers.jobs import JobRequest
from tests.schedulers.launchers import OPTIONS, launched_in, launcher_environment

HOSTS = ("host01", "host02", "host03")
LIMIT_S = 60
#: An option of each that `launcher_options` may add.
MORE = {
    "mpiexec": "-prepend-rank",
    "mpirun": "--tag-output",
    "aprun": "-q",
    "jsrun": "--stdio_mode prepended",
    "pbsdsh": "-v",
    "blaunch": "-no-shell",
    "qrsh": "-noshell",
}


class Job:
    """A job of three hosts, whose script a real shell runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = JobFiles(folder / "a folder's jobs")
        self.files.bind("1", "m")
        self.environ = os.environ | launcher_environment(folder, HOSTS)

    def script(self, launcher: str, command: str, **options: str) -> str:
        request = JobRequest("m", command, nodes=len(HOSTS), environment={"A": "it's $HOME `x`"})
        return write_script(self.files, request, [], LaunchOptions(launcher=launcher, **options))  # type: ignore[arg-type]

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", script], env=self.environ, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )

    def hosts(self) -> list[str]:
        return sorted(host for _, _, host in launched_in(self.folder))


def await_true(what: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT_S
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


@pytest.mark.parametrize("launcher", OPTIONS)
@pytest.mark.parametrize("more", [False, True])
def test_the_command_runs_once_on_each_node_with_its_variables(job: Job, launcher: str, more: bool) -> None:
    command = f"""printf '%s|%s|%s\\n' "$HOST" "$A" 'a "b" $c' > '{job.folder}'/$HOST.out"""

    done = job.run(job.script(launcher, command, launcher_options=MORE[launcher] if more else ""))

    assert (done.returncode, done.stderr) == (0, "")
    assert job.hosts() == list(HOSTS)
    for host in HOSTS:
        assert (job.folder / f"{host}.out").read_text() == f'{host}|it\'s $HOME `x`|a "b" $c\n'
    assert job.files.exit_code("1") == 0


@pytest.mark.parametrize("launcher", OPTIONS)
def test_the_exit_code_of_a_node_is_the_jobs(job: Job, launcher: str) -> None:
    done = job.run(job.script(launcher, 'test "$HOST" != host02 || exit 7'))

    assert (done.returncode, job.files.exit_code("1")) == (7, 7)


@pytest.mark.parametrize("launcher", OPTIONS)
def test_term_reaches_the_nodes_and_their_ends_are_awaited(job: Job, launcher: str) -> None:
    here = f"'{job.folder}'/$HOST"
    command = f"trap 'touch \"{job.folder}/$HOST.told\"; exit 0' TERM; touch {here}.runs; "
    command += "for n in $(seq 1200); do sleep 0.05; done"
    process = subprocess.Popen(["bash", job.script(launcher, command)], env=job.environ)
    try:
        await_true(lambda: len(list(job.folder.glob("*.runs"))) == len(HOSTS))
        process.send_signal(signal.SIGTERM)
        process.wait(LIMIT_S)
    finally:
        process.kill()
        process.wait()

    assert sorted(p.stem for p in job.folder.glob("*.told")) == list(HOSTS)


@pytest.mark.parametrize("launcher", OPTIONS)
def test_a_launcher_that_is_missing_has_a_remedy(job: Job, launcher: str) -> None:
    tools = job.folder / "tools"
    tools.mkdir()
    for name in ("bash", "mv", "uname"):
        (tools / name).symlink_to(str(shutil.which(name)))
    job.environ["PATH"] = str(tools)

    done = job.run(job.script(launcher, "true"))

    assert (done.returncode, job.files.exit_code("1")) == (127, 127)
    assert f"there is no {launcher} on " in done.stderr
    assert "worker_init" in done.stderr


def test_a_launcher_may_come_from_worker_init(job: Job) -> None:
    path = job.environ["PATH"]
    job.environ["PATH"] = "/usr/bin:/bin"

    done = job.run(job.script("jsrun", "true", worker_init=f"export PATH='{path}'"))

    assert (done.returncode, job.hosts()) == (0, list(HOSTS))


def test_pbsdsh_of_torque_starts_one_process_a_node(job: Job) -> None:
    """It would start one for each core that the job has."""
    job.environ["LAUNCHER_KIND"] = "torque"
    qsub = job.folder / "launchers" / "qsub"
    qsub.write_text("#!/bin/sh\necho 7.server\n")
    qsub.chmod(0o755)
    provider = job_provider(TorqueOptions(cores_per_node=4), job.folder / "endpoint", job.environ)

    provider.submit(JobRequest("mark", "true", nodes=len(HOSTS)))
    done = job.run(str(next((job.folder / "endpoint").rglob("mark.sh"))))

    assert (done.returncode, done.stderr) == (0, "")
    assert job.hosts() == list(HOSTS)
