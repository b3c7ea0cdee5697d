"""Commands of a scheduler: ended in time with their children, bounded, without the agent's secrets."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import psutil
import pytest

from oncue.endpoint.providers import commands
from oncue.endpoint.providers.commands import CommandHung, Commands, command_environment
from oncue.endpoint.providers.jobs import SchedulerAway

LIMIT_S = 20.0


@pytest.fixture
def runner() -> Commands:
    return Commands(LIMIT_S)


def gone(pid: int) -> bool:
    """Wait until a process has ended."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.01)
    return False


def test_output_and_exit_code(runner: Commands) -> None:
    done = runner.run("sh", "-c", "cat; echo no >&2; exit 3", stdin="yes")

    assert (done.code, done.out, done.err, done.why) == (3, "yes", "no\n", "sh: no")


def hang(runner: Commands, script: str, child: Path) -> None:
    """Run a script that hangs, for long enough that it has started its child."""
    for timeout_s in (1, 5, 25):  # the machine may be busy
        with pytest.raises(CommandHung, match=rf"sh: no answer in {timeout_s} s"):
            runner.run("sh", "-c", script, timeout_s=timeout_s)
        if child.exists() and child.read_text():
            break


def test_a_command_that_hangs_is_ended_with_its_children(runner: Commands, tmp_path: Path) -> None:
    script = f"sleep 1000 & echo $! >{tmp_path / 'child'}; exec sleep 1000"

    hang(runner, script, tmp_path / "child")

    assert gone(int((tmp_path / "child").read_text()))


@pytest.mark.skipif(shutil.which("setsid") is None, reason="needs setsid; apt-get install util-linux")
def test_a_child_in_a_session_of_its_own_is_ended_too(runner: Commands, tmp_path: Path) -> None:
    script = f"setsid sh -c 'echo $$ >{tmp_path / 'child'}; exec sleep 1000' & wait"

    hang(runner, script, tmp_path / "child")

    assert gone(int((tmp_path / "child").read_text()))


def test_a_child_that_keeps_the_pipes_open_is_not_waited_for(runner: Commands) -> None:
    done = runner.run("sh", "-c", "sleep 1000 & echo $!")

    assert done.code == 0
    assert gone(int(done.out))


def test_a_flood_of_output_is_refused(runner: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "MOST_OUTPUT", 1 << 20)

    with pytest.raises(SchedulerAway, match="its output is over 1 MiB"):
        runner.run("sh", "-c", "exec yes")


def test_large_input_is_written_while_output_is_read(runner: Commands) -> None:
    text = "0123456789" * 100_000

    assert runner.run("cat", stdin=text).out == text
    assert runner.run("true", stdin=text).code == 0


def test_a_missing_program_says_where_it_should_be(runner: Commands) -> None:
    with pytest.raises(SchedulerAway, match="no-such-sbatch cannot be started: No such file") as raised:
        runner.run("no-such-sbatch")

    assert "login node" in raised.value.remedy


def test_secrets_of_the_agent_do_not_reach_the_scheduler() -> None:
    given = {
        "PATH": "/bin",
        "HOME": "/home/u",
        "SLURM_CONF": "/etc/slurm.conf",
        "SBATCH_ACCOUNT": "a",
        "LC_ALL": "de_DE",
        "ONCUE_TOKEN": "secret",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "SLURM_JOB_ID": "1",
        "PBS_JOBID": "1",
        "PBS_DEFAULT": "server",
    }

    kept = command_environment(given)

    assert kept == {
        "PATH": "/bin",
        "HOME": "/home/u",
        "SLURM_CONF": "/etc/slurm.conf",
        "SBATCH_ACCOUNT": "a",
        "LC_ALL": "C.UTF-8",
        "PBS_DEFAULT": "server",
    }
