"""Workers of a real agent: settings, limits of functions, and processes that tasks leave behind."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import psutil
import pytest

import oncue
from tests.e2e.running import System, has_ended

pytestmark = pytest.mark.embedded


@pytest.mark.skipif(sys.platform != "linux", reason="adopting orphans needs Linux")
def test_a_process_that_a_dead_worker_left_behind_ends(stopped: System, tmp_path: Path) -> None:
    note = tmp_path / "pid"

    def f(note: str) -> None:
        import os
        import subprocess

        child = subprocess.Popen(["sleep", "1000"], start_new_session=True, env={})
        with open(note, "w") as out:
            out.write(str(child.pid))
        os._exit(3)

    stopped.up("--workers", "1")
    stopped.await_connected()
    with stopped.client() as client, pytest.raises(oncue.TaskLost):
        client.submit(f, str(note)).result(timeout=60)
    child = int(note.read_text())
    stopped.await_true(lambda: not psutil.pid_exists(child) or has_ended(psutil.Process(child)), "the child's end")


def test_a_rule_file_states_properties_of_a_function(stopped: System) -> None:
    """The function itself knows nothing of oncue."""
    reads = "import os\n\ndef f(name):\n    return [os.getpid(), open(os.path.join(os.path.dirname(__file__), name)).read()]\n"
    greedy = "\ndef greedy():\n    kept = []\n    while True:\n        kept.append(bytearray(10_000_000))\n"
    stopped.write("plain.py", reads + greedy)
    stopped.write("masks/a.txt", "mask")
    stopped.write("flat.txt", "flat")
    stopped.write(
        "plain.yaml",
        "rules:\n"
        "  - {name: flat, on: {type: f}, run: {function: plain.py:f, files: flat.txt, fresh: true, args: [flat.txt]}}\n"
        "  - {name: mask, on: {type: f}, run: {function: plain.py:f, files: [masks/*.txt], args: [masks/a.txt]}}\n"
        "  - {name: greedy, on: {type: g}, run: {function: plain.py:greedy, memory: 300MB}}\n",
    )
    stopped.up("--workers", "1")
    stopped.await_connected()
    stopped.oncue("deploy", "plain.yaml", "--yes")
    for n in range(2):
        stopped.oncue("events", "emit", "--type", "f", "--source", "/a", "--id", str(n))
    tasks = [stopped.http("GET", f"/v1/tasks/{t['id']}").json for t in stopped.await_tasks(4)]
    assert sorted(t["value"][1] for t in tasks) == ["flat", "flat", "mask", "mask"]
    assert len({t["value"][0] for t in tasks}) == 4  # each in a process of its own
    stopped.oncue("events", "emit", "--type", "g", "--source", "/a")
    (task,) = stopped.await_tasks(1, rule="greedy")
    assert "memory limit of 300 MB" in task["why"]
    stopped.write("flat.txt", "changed")
    assert "plain.py:f" in stopped.oncue("rules", "diff", "plain.yaml", code=1).stdout
    (stopped.folder / "flat.txt").unlink()
    done = stopped.oncue("deploy", "plain.yaml", "--yes", code=2)
    assert "plain.yaml:2" in done.stderr
    assert "flat.txt" in done.stderr


def test_settings_of_workers_and_functions(stopped: System) -> None:
    @oncue.function(memory="300MB")
    def greedy() -> None:
        kept = []
        while True:
            kept.append(bytearray(10_000_000))

    def where() -> tuple[int, str, str]:
        import os

        return os.getpid(), os.environ["ONCUE_WORKER"], os.environ["OMP_NUM_THREADS"]

    stopped.up("--workers", "1")
    stopped.await_connected()
    stopped.oncue("endpoint", "stop", "local")
    path = stopped.data / "endpoints" / "local" / "agent.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_tasks": 2, "threads": 3, "max_memory": "1GB"}))
    stopped.oncue("endpoint", "start", "local", "--detach")
    with stopped.client() as client:
        found = [client.submit(where).result(timeout=60) for _ in range(4)]
        assert [tuple(x[1:]) for x in found] == [("0", "3")] * 4
        assert len({pid for pid, *_ in found}) == 2
        with pytest.raises(MemoryError, match="memory limit of 300 MB"):
            client.submit(greedy).result(timeout=60)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_memory": "much"}))
    stopped.oncue("endpoint", "stop", "local")
    done = stopped.oncue("endpoint", "start", "local", code=2)
    assert "max_memory" in done.stderr
