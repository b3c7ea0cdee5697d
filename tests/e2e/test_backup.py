"""`oncue backup` while a server works, and `oncue restore`: nothing of before the backup is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from oncue.client import Client
from oncue.errors import OncueError
from tests.e2e.conftest import System
from tests.e2e.running import PATIENCE_S, signalled
from tests.e2e.test_files import await_trigger, deploy, fired, renamed, rules

pytestmark = pytest.mark.embedded


def double(x: int) -> int:
    return 2 * x


class Load(threading.Thread):
    """Submits tasks without a pause; notes those that were accepted, with their outcomes."""

    def __init__(self, data: Path) -> None:
        super().__init__(daemon=True)
        self.data, self.ended = data, threading.Event()
        self.accepted: list[str] = []  # ids, in order

    def run(self) -> None:
        with Client(data=self.data, patience=30) as client:
            n = 0
            while not self.ended.is_set():
                try:
                    task = client.submit(double, n)
                    client.flush()
                    self.accepted.append(str(task.id))
                    if n % 5 == 0:
                        client.submit(len, os.urandom(300_000)).result(PATIENCE_S)  # a blob
                except OncueError:
                    self.ended.wait(0.1)
                n += 1


@contextmanager
def load(system: System) -> Iterator[Load]:
    found = Load(system.data)
    found.start()
    try:
        yield found
    finally:
        found.ended.set()
        found.join(60)
        assert not found.is_alive()


def all_tasks(system: System) -> dict[str, str]:
    return {task["id"]: task["state"] for task in system.tasks()}


def backup(system: System, folder: Path) -> dict[str, Any]:
    return dict(system.json("backup", str(folder)))


def test_a_restore_under_load_loses_nothing_of_before_the_backup(stopped: System) -> None:
    system, copy, incoming = stopped, stopped.folder / "backup", stopped.folder / "incoming"
    system.up("--workers", "2")
    deploy(system, "det", rules("det", incoming))
    await_trigger(system, "det")
    with load(system) as work:
        system.await_true(lambda: len(work.accepted) > 20, "the load runs")
        renamed(incoming, "a", 1)
        assert fired(system, "det-measure", 1) == ["a.raw"]
        before = list(work.accepted)
        first = backup(system, copy)
        system.await_true(lambda: len(work.accepted) > len(before) + 20, "the load goes on")
        later = list(work.accepted)
        second = backup(system, copy)
        at_end = len(work.accepted)
        system.await_true(lambda: len(work.accepted) > at_end + 20, "the load goes on")
        renamed(incoming, "b", 2)
        assert fired(system, "det-measure", 2) == ["a.raw", "b.raw"]
    assert second["log_records"] > first["log_records"]
    assert 0 < second["new_blobs"] < second["blobs"]
    system.down()
    said = system.oncue("restore", str(copy), "--force").stdout
    assert "What was accepted after the backup is gone" in said
    system.up("--workers", "2")
    system.await_connected()
    found = all_tasks(system)
    assert set(later) <= found.keys(), "accepted before the backup"
    assert not set(work.accepted[-15:]) & found.keys(), "of after the backup"
    system.await_true(lambda: set(all_tasks(system).values()) == {"succeeded"}, "open tasks are run")
    assert fired(system, "det-measure", 2) == ["a.raw", "b.raw"], "the later file fires again"
    with system.client() as client:
        assert client.submit(double, 21).result(PATIENCE_S) == 42
    assert not (system.data / "diverged.json").exists()
    assert system.oncue("doctor", code=None).stdout.count("WRONG stored log") == 0


def test_a_backup_restores_to_a_new_folder_with_keys_and_secrets(stopped: System) -> None:
    stopped.up("--workers", "1")
    (stopped.data / "secrets").mkdir()
    (stopped.data / "secrets" / "daq").write_text("whsec_1")
    (stopped.data / "oncue.toml").write_text("rate_per_s = 1000.0\n")
    with stopped.client() as client:
        done = client.submit(double, 4)
        assert done.result(PATIENCE_S) == 8
    backup(stopped, stopped.folder / "backup")
    stopped.end()
    other = System(stopped.folder, stopped.folder / "other")
    other.oncue("restore", str(stopped.folder / "backup"))
    for name in ("bridge.key", "secrets/daq", "oncue.toml", "endpoints/local/agent.key"):
        assert (other.data / name).read_bytes() == (stopped.data / name).read_bytes()
    for path in (stopped.folder / "backup", *(stopped.folder / "backup").rglob("*"), *other.data.rglob("*")):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    try:
        other.up("--workers", "1")
        assert all_tasks(other) == {str(done.id): "succeeded"}
        with other.client() as client:
            assert client.submit(double, 5).result(PATIENCE_S) == 10
    finally:
        other.end()


def test_a_killed_backup_leaves_the_former_one_good(stopped: System) -> None:
    copy = stopped.folder / "backup"
    stopped.up("--workers", "1")
    with load(stopped) as work:
        stopped.await_true(lambda: len(work.accepted) > 10, "the load runs")
        backup(stopped, copy)
        for pause in (0.3, 0.35, 0.4, 0.45, 0.5, 0.6):
            count = len(work.accepted) + 3
            stopped.await_true(lambda count=count: len(work.accepted) > count, "the load runs")  # type: ignore[misc]
            before = (copy / "backup.json").read_text()
            process = stopped.start("backup", str(copy))
            try:
                process.communicate(timeout=pause)
            except subprocess.TimeoutExpired:
                signalled(process, signal.SIGKILL)
            stopped.oncue("restore", str(copy), "--check")
            assert json.loads((copy / "backup.json").read_text())["at"] >= json.loads(before)["at"]
        backup(stopped, copy)
        stopped.oncue("restore", str(copy), "--check")
    assert len(list(copy.glob("files-*"))) == 1, "what killed backups left is deleted"


@pytest.fixture
def copied(stopped: System) -> Path:
    stopped.up("--no-endpoint")
    for n in range(20):
        assert stopped.http("POST", "/v1/events", {"type": "a", "source": "/b", "id": str(n)}).status == 202
    backup(stopped, stopped.folder / "backup")
    return stopped.folder / "backup"


def test_damage_in_a_backup_is_found_and_not_restored(stopped: System, copied: Path) -> None:
    stopped.down()
    with closing(sqlite3.connect(copied / "log.db", isolation_level=None)) as db:
        db.execute("UPDATE batches SET blob = x'00' WHERE first = 7")
    said = stopped.oncue("restore", str(copied), "--data", str(stopped.folder / "new"), code=1).stderr
    assert "the batch at 7 does not have its checksum" in said
    assert not (stopped.folder / "new" / "log").exists()
    manifest = json.loads((copied / "backup.json").read_text())
    key = copied / manifest["files_folder"] / "bridge.key"
    key.write_text("another")
    assert "bridge.key is not what was copied" in stopped.oncue("restore", str(copied), "--check", code=1).stderr
    stopped.oncue("restore", str(copied), "--damaged", "--data", str(stopped.folder / "new"))


def test_a_restore_refuses_a_used_folder_and_a_running_server(stopped: System, copied: Path) -> None:
    running = stopped.oncue("restore", str(copied), "--force", code=None)
    assert running.returncode != 0
    assert "open already" in running.stderr
    assert stopped.http("GET", "/health/ready").status == 200
    stopped.down()
    refused = stopped.oncue("restore", str(copied), code=None)
    assert refused.returncode != 0
    assert "--force" in refused.stderr


def test_an_interrupted_restore_keeps_servers_out_until_it_is_finished(stopped: System, copied: Path) -> None:
    stopped.down()
    (stopped.data / "view.db").unlink()
    # As if it had died after the first renames.
    aside = stopped.data / "aside" / "1"
    aside.mkdir(parents=True)
    staged = stopped.data / ".restoring"
    staged.mkdir()
    shutil.copytree(stopped.data / "log", staged / "log")
    (staged / "windows.db").write_bytes(b"")
    old = ["bridge.key", "http.port", "log"]
    (stopped.data / "bridge.key").rename(aside / "bridge.key")
    (staged / "bridge.key").write_bytes((aside / "bridge.key").read_bytes())
    (stopped.data / "restore.json").write_text(json.dumps({"kept": str(aside), "old": old}))
    refused = stopped.oncue("up", "--port", "0", code=None)
    assert "interrupted" in refused.stderr
    stopped.oncue("restore", str(copied))
    assert sorted(p.name for p in aside.iterdir()) == old
    assert not staged.exists()
    (stopped.data / "windows.db").unlink()
    stopped.up("--no-endpoint")
    assert len(stopped.http("GET", "/v1/events?limit=100").json["items"]) == 20


def test_a_backup_of_another_log_is_not_overwritten(stopped: System, copied: Path) -> None:
    stopped.down()
    shutil.rmtree(stopped.data / "log")
    stopped.up("--no-endpoint")
    refused = stopped.oncue("backup", str(copied), code=None)
    assert refused.returncode == 1
    assert "another log" in refused.stderr
    stopped.oncue("restore", str(copied), "--check")


def test_a_backup_of_a_stopped_server_is_the_same(stopped: System, copied: Path) -> None:
    stopped.down()
    again = backup(stopped, copied)
    assert again["new_blobs"] == 0
    stopped.oncue("restore", str(copied), "--check")


def test_a_folder_that_is_no_backup_is_refused(stopped: System, copied: Path) -> None:
    (stopped.folder / "mine").mkdir()
    (stopped.folder / "mine" / "thesis.tex").write_text("!")
    assert "not empty" in stopped.oncue("backup", str(stopped.folder / "mine"), code=2).stderr
    assert "contain each other" in stopped.oncue("backup", str(stopped.data / "b"), code=2).stderr
