"""Shell functions in real workers: exit codes, streams, sandboxes, outputs, whole process trees."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import oncue
from oncue.blobs import Blobs
from oncue.endpoint.pool.task_folders import KEPT
from oncue.functions import Packed, pack_function
from oncue.functions.shell.pack import shell
from oncue.ids import new_uuid7
from oncue.protocol.payload import files_of, pack_args, unpack, with_files
from oncue.protocol.records import CANCELLED, ERROR, LOST, OK, TIMEOUT, Ended, TaskRecord
from oncue.protocol.run_options import KEEP, RunOptions
from tests.pool_rig import Rig, rig_in, why


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with rig_in(tmp_path / "endpoint") as found:
        yield found


def start(
    rig: Rig, packed: Packed, timeout_ms: int = 0, options: RunOptions | None = None, **values: Any
) -> TaskRecord:
    task = TaskRecord(new_uuid7(), pack_args((), values))
    rig.submit(packed, [task], timeout_ms, options=options)
    return task


def run(rig: Rig, packed: Packed, **given: Any) -> Ended:
    return rig.end_of(start(rig, packed, **given))


def content(rig: Rig, sha256: str) -> bytes:
    return Blobs(rig.folder / "blobs").read(sha256)


def contents(rig: Rig, files: Any) -> dict[str, bytes]:
    return {f.name: content(rig, f.sha256) for f in files}


def is_alive(pid: int) -> bool:
    """Return True if the process runs: a zombie does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def left_folders(rig: Rig) -> list[Path]:
    return list((rig.folder / "tasks").glob("*-*/*"))


def test_a_script_succeeds_and_its_streams_are_kept_whole(rig: Rig) -> None:
    ended = run(rig, shell('printf "<%s>" ${x}; echo "to stderr" >&2'), x="$(id); a b")

    assert ended.status == OK, why(ended)
    found = with_files(ended.value)
    assert found.shell
    assert unpack(ended.value) == {"returncode": 0, "stdout": "<$(id); a b>", "stderr": "to stderr\n"}
    assert contents(rig, found.files) == {"stdout": b"<$(id); a b>", "stderr": b"to stderr\n"}
    assert ended.output == b"<$(id); a b>to stderr\n"
    assert left_folders(rig) == []


def test_the_exit_code_decides(rig: Rig) -> None:
    ended = run(rig, shell('echo half; echo "no beam" >&2; exit 75', name="scan"))

    assert ended.status == ERROR
    failure = why(ended)
    assert (failure.type, failure.exit_code) == ("oncue.ShellFailed", 75)
    assert failure.message == "scan ended with exit:75: no beam"
    assert contents(rig, failure.files) == {"stdout": b"half\n", "stderr": b"no beam\n"}


@pytest.mark.parametrize(("script", "code"), [("kill -9 $$", 137), ("no_such_command_x", 127), ("exit 300", 44)])
def test_signals_and_missing_commands_have_the_shells_codes(rig: Rig, script: str, code: int) -> None:
    ended = run(rig, shell(script))
    assert (ended.status, why(ended).exit_code) == (ERROR, code)
    assert why(ended).remedy


def test_python_functions_have_exit_codes_too(rig: Rig) -> None:
    def leave(code: Any) -> None:
        sys.exit(code)

    def check(code: int) -> None:
        subprocess.run(["sh", "-c", f"exit {code}"], check=True)

    assert [why(rig.one(leave, code)).exit_code for code in (75, "no beam")] == [75, 1]
    assert why(rig.one(check, 75)).exit_code == 75
    assert why(rig.one(lambda: 1 / 0)).exit_code == -1


def test_environment_and_working_directory_are_stated(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "data set").mkdir()
    packed = shell(
        'echo "$SCAN|$PWD|$OMP_NUM_THREADS|${n}|${flag}|${list}"; pwd; test -t 0 || cat',
        env={"SCAN": "s-${n}"},
        cwd=str(tmp_path / "${folder}"),
        resources={"cores": 1},
    )
    ended = run(rig, packed, n=7, flag=True, folder="data set", list=[1, "a"])

    where = tmp_path / "data set"
    assert unpack(ended.value)["stdout"] == f's-7|{where}|1|7|true|[1,"a"]\n{where}\n'


@pytest.mark.parametrize(
    ("packed", "values", "message"),
    [
        (shell("true", cwd="/no/such"), {}, "the working directory /no/such does not exist"),
        (shell("true", interpreter="/no/such/sh"), {}, "there is no '/no/such/sh' here"),
        (shell("cat ${x}"), {"x": "a\0b"}, "the value of ${x} has a NUL character"),
        (shell("cat ${x}"), {"x": "a" * 200_000}, "a command takes 100,000 of one"),
    ],
)
def test_what_cannot_be_run_says_why(rig: Rig, packed: Packed, values: dict[str, Any], message: str) -> None:
    ended = run(rig, packed, **values)
    assert ended.status == ERROR
    assert message in why(ended).message
    assert why(ended).remedy


def test_large_output_is_whole_as_a_file_and_not_in_memory(rig: Rig) -> None:
    script = "head -c 80000000 /dev/zero | tr '\\0' x; echo; echo the end"
    before = psutil.Process(rig.pool.pids[0]).memory_info().rss

    ended = run(rig, shell(script))

    (stdout,) = files_of(ended.value)
    assert stdout.size_bytes == 80_000_009
    assert stdout.sha256 == hashlib.sha256(b"x" * 80_000_000 + b"\nthe end\n").hexdigest()
    assert len(ended.value) < 100_000
    assert ended.output.endswith(b"the end\n")
    assert psutil.Process(rig.pool.pids[0]).memory_info().rss - before < 40_000_000


def test_output_is_shown_while_the_script_runs(rig: Rig, tmp_path: Path) -> None:
    go = tmp_path / "go"
    task = start(
        rig, shell("echo one; echo two >&2; while [ ! -e ${go} ]; do sleep 0.05; done; echo three"), go=str(go)
    )

    rig.until(lambda: b"two" in b"".join(text for *_, text in rig.events.output))
    assert b"one\n" in b"".join(text for *_, text in rig.events.output)
    go.touch()

    assert unpack(rig.end_of(task).value)["stdout"] == "one\nthree\n"


TREE = """
trap 'echo told' TERM
(setsid sleep 1000 & echo $! > ${pids}/setsid.tmp; mv ${pids}/setsid.tmp ${pids}/setsid)
sleep 1000 & echo $! > ${pids}/child.tmp; mv ${pids}/child.tmp ${pids}/child
sh -c 'sleep 1000 & echo $! > "$1".tmp; mv "$1".tmp "$1"; wait' sh ${pids}/grandchild &
wait
sleep 1000
"""


@pytest.mark.parametrize("how", ["timeout", "cancel", "killed"])
def test_the_whole_process_tree_ends(rig: Rig, tmp_path: Path, how: str) -> None:
    task = start(rig, shell(TREE, sandbox="keep"), timeout_ms=8_000 if how == "timeout" else 0, pids=str(tmp_path))
    names = ("setsid", "child", "grandchild")
    rig.until(lambda: all((tmp_path / n).exists() for n in names))
    pids = [int((tmp_path / n).read_text()) for n in names]
    assert all(map(is_alive, pids))

    if how == "cancel":
        rig.pool.cancel({task.id})
    elif how == "killed":
        os.kill(rig.pool.pids[0], signal.SIGKILL)
    ended = rig.end_of(task)

    assert ended.status == {"timeout": TIMEOUT, "cancel": CANCELLED, "killed": LOST}[how]
    spared = {pids[0]} if how == "killed" else set()  # init's child by then: an agent adopts and ends it
    rig.until(lambda: not any(is_alive(p) for p in pids if p not in spared))
    for pid in spared:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert Path(why(ended).folder).is_dir()
    assert Path(why(ended).folder).parent == rig.folder / "tasks" / KEPT


@pytest.mark.parametrize("how", ["timeout", "cancel", "killed"])
def test_the_streams_of_a_stopped_script_are_kept_whole(rig: Rig, tmp_path: Path, how: str) -> None:
    script = "seq 300000; echo mend >&2; touch ${mark}; exec sleep 1000"
    limit_ms = 8_000 if how == "timeout" else 0
    task = start(rig, shell(script), timeout_ms=limit_ms, mark=str(tmp_path / "mark"))
    rig.wait_for(tmp_path / "mark")

    if how == "cancel":
        rig.pool.cancel({task.id})
    elif how == "killed":
        os.kill(rig.pool.pids[0], signal.SIGKILL)
    ended = rig.end_of(task)

    assert ended.status == {"timeout": TIMEOUT, "cancel": CANCELLED, "killed": LOST}[how]
    whole = "".join(f"{n}\n" for n in range(1, 300_001)).encode()
    assert contents(rig, why(ended).files) == {"stdout": whole, "stderr": b"mend\n"}
    rig.until(lambda: not left_folders(rig))


def test_a_pool_that_is_closed_keeps_the_streams_of_what_it_stops(rig: Rig, tmp_path: Path) -> None:
    task = start(rig, shell("echo begun; touch ${mark}; exec sleep 1000"), mark=str(tmp_path / "mark"))
    rig.wait_for(tmp_path / "mark")

    rig.pool.close(0)
    rig.drain()

    (ended,) = rig.ended
    assert (ended.id, ended.status) == (task.id, LOST)
    assert contents(rig, why(ended).files) == {"stdout": b"begun\n"}
    assert rig.pool.fds() == []


def test_streams_that_cannot_be_kept_are_named_in_the_log(rig: Rig) -> None:
    shutil.rmtree(rig.folder / "blobs", ignore_errors=True)
    task = start(rig, shell("echo begun; exec sleep 1000"))
    rig.until(lambda: b"begun" in b"".join(text for *_, text in rig.events.output))
    (rig.folder / "blobs").write_text("no folder")

    rig.pool.cancel({task.id})
    ended = rig.end_of(task)

    assert (ended.status, why(ended).files) == (CANCELLED, ())
    assert ended.output.startswith(b"begun\n[oncue: stdout and stderr could not be kept as files")


def test_what_a_script_leaves_in_the_background_ends_with_it(rig: Rig, tmp_path: Path) -> None:
    ended = run(rig, shell("sleep 1000 & echo $! > ${f}; echo done"), f=str(tmp_path / "pid"))
    assert ended.status == OK
    rig.until(lambda: not is_alive(int((tmp_path / "pid").read_text())))


# ---------------------------------------------------------------- sandboxes and outputs


def test_outputs_come_back_by_reference(rig: Rig) -> None:
    script = "mkdir -p logs/deep 'a b'; echo 1 > scan.h5; echo 2 > 'a b/$(x).h5'; echo 3 > logs/deep/l.txt; echo 4 > no"
    ended = run(rig, shell(script, outputs=["*.h5", "a b/*.h5", "logs"]))

    assert ended.status == OK, why(ended)
    assert contents(rig, files_of(ended.value)) == {
        "scan.h5": b"1\n",
        "a b/$(x).h5": b"2\n",
        "logs/deep/l.txt": b"3\n",
    }
    assert left_folders(rig) == []


def test_an_output_that_is_not_written_is_an_error(rig: Rig) -> None:
    ended = run(rig, shell("touch a.h5", outputs=["*.h5", "*.log"]))
    assert (ended.status, why(ended).type) == (ERROR, "oncue.MissingOutput")
    assert "'*.log'" in why(ended).message


def test_outputs_of_a_working_directory_that_is_no_sandbox(rig: Rig, tmp_path: Path) -> None:
    ended = run(rig, shell("echo 1 > new.h5", cwd=str(tmp_path), outputs=["new.h5"]))
    assert contents(rig, files_of(ended.value)) == {"new.h5": b"1\n"}
    assert (tmp_path / "new.h5").exists()


def test_a_python_function_has_a_sandbox_of_its_own(rig: Rig) -> None:
    @oncue.function(sandbox=True, outputs=["*.txt"])
    def write(text: str) -> list[str]:
        Path("out.txt").write_text(text)
        return sorted(os.listdir())

    ended = [rig.one(write, text) for text in ("first", "second")]

    assert [unpack(e.value) for e in ended] == [["out.txt"], ["out.txt"]]
    assert [contents(rig, files_of(e.value)) for e in ended] == [{"out.txt": b"first"}, {"out.txt": b"second"}]
    assert rig.value(os.getcwd) == str(rig.folder / "work")
    assert left_folders(rig) == []


def test_a_sandbox_is_kept_if_the_task_fails_and_that_was_asked_for(rig: Rig) -> None:
    @oncue.function(sandbox="keep")
    def write(fails: bool) -> None:
        Path("out.txt").write_text("state")
        if fails:
            raise ValueError("no")

    assert rig.one(write, False).status == OK
    failed, shells = why(rig.one(write, True)), why(run(rig, shell("echo s > f; exit 1", sandbox="keep")))

    assert (failed.type, Path(failed.folder, "out.txt").read_text()) == ("ValueError", "state")
    assert Path(shells.folder, "f").read_text() == "s\n"
    assert len(list((rig.folder / "tasks" / KEPT).iterdir())) == 2
    assert left_folders(rig) == []


def test_a_call_states_a_sandbox_for_any_function(rig: Rig) -> None:
    ended = run(rig, pack_function(os.getcwd), options=RunOptions(sandbox=KEEP))
    assert unpack(ended.value).endswith("/sandbox")


def test_what_a_killed_worker_has_left_is_removed_by_the_next(rig: Rig, tmp_path: Path) -> None:
    task = start(rig, shell("touch ${f}; sleep 1000", sandbox=True), f=str(tmp_path / "runs"))
    rig.wait_for(tmp_path / "runs")
    assert len(left_folders(rig)) == 1
    os.kill(rig.pool.pids[0], signal.SIGKILL)

    assert rig.end_of(task).status == LOST
    rig.until(lambda: not left_folders(rig))
