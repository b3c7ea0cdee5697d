"""The script of a job, run by a real shell: variables, exit code, TERM, privacy."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from oncue.endpoint.providers.job_files import JobFiles
from oncue.endpoint.providers.job_script import LaunchOptions, clock, write_script
from oncue.endpoint.providers.jobs import JobRequest, SubmissionRefused
from oncue.endpoint.providers.launchers import LAUNCHERS, launched

LIMIT_S = 20


@pytest.fixture
def files(tmp_path: Path) -> JobFiles:
    return JobFiles(tmp_path / "a folder's jobs")


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", script], capture_output=True, text=True, timeout=LIMIT_S, check=False)


def test_variables_and_init_come_before_the_command(files: JobFiles) -> None:
    request = JobRequest("m", 'echo "$A/$B"', environment={"A": "it's $HOME `x`"})

    done = run(write_script(files, request, ["#SBATCH --nodes=1"], LaunchOptions("export B=init")))

    assert done.stdout == "it's $HOME `x`/init\n"
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", [("bash",), ("bash", "--login")])
def test_a_script_needs_neither_a_login_shell_nor_its_variables(
    files: JobFiles, tmp_path: Path, shell: tuple[str, ...]
) -> None:
    (tmp_path / ".bash_profile").write_text("echo from the profile >&2; set -u; export A=profile\n")
    request = JobRequest("m", 'echo "$A"; exit 4', environment={"A": "request"})
    files.bind("1", "m")
    script = write_script(files, request, [], LaunchOptions("export B=init"))

    done = subprocess.run(
        ["env", "-i", f"HOME={tmp_path}", "PATH=/usr/bin:/bin", *shell, script],
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip

    assert (done.stdout, done.returncode, files.exit_code("1")) == ("request\n", 4, 4)
    assert done.stderr == ("from the profile\n" if "--login" in shell else "")


def test_the_exit_code_is_left_behind(files: JobFiles) -> None:
    files.bind("17.server", "m")
    script = write_script(files, JobRequest("m", "echo last words >&2; exit 3"), [], LaunchOptions())

    done = run(script)

    assert done.returncode == 3
    assert files.exit_code("17.server") == 3


def test_term_reaches_the_command(files: JobFiles, tmp_path: Path) -> None:
    files.bind("1", "m")
    ready = tmp_path / "ready"
    command = f"trap 'echo told; exit 5' TERM; touch '{ready}'; while :; do sleep 0.01; done"
    script = write_script(files, JobRequest("m", command), [], LaunchOptions())
    with subprocess.Popen(["bash", script], stdout=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + LIMIT_S
        while not ready.exists() and time.monotonic() < end:
            time.sleep(0.01)

        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=LIMIT_S)

    assert out == "told\n"
    assert process.returncode == 5
    assert files.exit_code("1") == 5


@pytest.mark.parametrize("text", ["", "-1\n", "999\n", "3", "three\n"])
def test_an_exit_code_that_is_none_is_not_believed(files: JobFiles, text: str) -> None:
    files.bind("1", "m")
    files.write("m", ".exit", text)

    assert files.exit_code("1") == (3 if text == "3" else None)


def test_the_script_with_its_secret_is_private(files: JobFiles) -> None:
    request = JobRequest("m", "true", nodes=2, environment={"ONCUE_NODE_SECRET": "s"})

    script = write_script(files, request, [], LaunchOptions(launcher="mpirun"))

    node_script = files.path("m", ".node")
    assert Path(script).stat().st_mode & 0o777 == 0o600
    assert node_script.stat().st_mode & 0o777 == 0o600
    assert files.folder.stat().st_mode & 0o777 == 0o700
    assert "ONCUE_NODE_SECRET=s" in node_script.read_text()


def test_an_old_exit_code_does_not_count_for_a_new_job(files: JobFiles) -> None:
    files.bind("1", "m")
    files.write("m", ".exit", "0\n")

    write_script(files, JobRequest("m", "true"), [], LaunchOptions())

    assert files.exit_code("1") is None


def test_one_node_launchers_refuse_several_nodes(files: JobFiles) -> None:
    with pytest.raises(SubmissionRefused, match="launcher simple starts one node only, and a block has 2"):
        write_script(files, JobRequest("m", "true", nodes=2), [], LaunchOptions())


def test_a_folder_that_cannot_be_written_refuses(files: JobFiles) -> None:
    files.path("m", ".sh").mkdir()

    with pytest.raises(SubmissionRefused, match="the job's script cannot be written"):
        write_script(files, JobRequest("m", "true"), [], LaunchOptions())


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers_give_valid_shell(launcher: str) -> None:
    command = launched(launcher, 'echo "it\'s $X"', "/a b/m.node", 3, "--option")  # type: ignore[arg-type]

    assert subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0
    assert ("--option" in command) == (launcher != "simple")


def test_only_the_newest_jobs_keep_their_files(files: JobFiles) -> None:
    for n in range(5):
        files.bind(str(n), f"m{n}")
        files.write(f"m{n}", ".sh", "")
        files.write(f"m{n}", ".err", "why\n")
        time.sleep(0.002)

    files.prune(kept=2)

    assert sorted(p.name for p in files.folder.glob("*.*")) == ["m3.err", "m3.sh", "m4.err", "m4.sh"]
    assert [files.mark_of(str(n)) for n in range(5)] == [None, None, None, "m3", "m4"]


def test_the_tail_of_a_long_stderr_begins_with_a_whole_line(files: JobFiles) -> None:
    files.bind("1", "m")
    files.write("m", ".err", "".join(f"line {n}\n" for n in range(10_000)))

    tail = files.stderr_tail("1")

    assert len(tail) <= 4000
    assert tail.startswith("line ")
    assert tail.endswith("line 9999")


def test_time_limits() -> None:
    assert [clock(n) for n in (5, 65, 3600, 400_000)] == ["00:00:05", "00:01:05", "01:00:00", "111:06:40"]
