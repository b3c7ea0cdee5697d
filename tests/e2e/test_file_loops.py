"""Functions that write into the folder of their own trigger: the loop is stopped and told."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oncue.rules.batch_result import MAX_FILE_DEPTH
from tests.e2e.running import System, system_in

WORK = """
import os, time, uuid
from pathlib import Path

def beside(path):
    p = Path(path)
    p.with_name(p.stem + "_out" + p.suffix).write_bytes(p.read_bytes())

def in_front(path):
    p = Path(path)
    p.with_name("rec_" + p.name).write_bytes(p.read_bytes())

def twice(path):
    p = Path(path)
    for end in "ab":
        p.with_name(p.stem + "_" + end + p.suffix).write_bytes(p.read_bytes())

def in_place(path):
    with open(path, "ab") as file:
        file.write(b"x")

def fixed(path):
    p = Path(path)
    (p.parent / "result.raw").write_text(str(time.time()))

def unrelated(path):
    p = Path(path)
    (p.parent / f"{uuid.uuid4().hex}.raw").write_bytes(b"x")

def by_child(path):
    os.system(f"cp {path} {path}.raw")

def there(path):
    p = Path(path)
    (p.parent.parent / "loop-pong" / f"{uuid.uuid4().hex}.raw").write_bytes(b"x")

def back(path):
    p = Path(path)
    (p.parent.parent / "loop-ping" / f"{uuid.uuid4().hex}.raw").write_bytes(b"x")

def count(path):
    time.sleep(0.05)
"""
FILE = """
triggers:
  - {{name: {name}, kind: file, path: {folder}, loops: {loops}}}
rules:
  - {{name: {name}, on: {name}, run: {{function: "work.py:{function}", endpoint: local, args: {{path: "${{data.path}}"}}}}}}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with system_in(tmp_path_factory.mktemp("loops"), "--workers", "2") as system:
        system.write("work.py", WORK)
        yield system


def deployed(site: System, name: str, function: str, loops: str = "stop") -> Path:
    folder = site.folder / name
    folder.mkdir()
    site.write(f"{name}.yaml", FILE.format(name=name, folder=folder, function=function, loops=loops))
    site.oncue("deploy", f"{name}.yaml", "--yes")
    return folder


def stopped(site: System, *names: str) -> str:
    """Wait until a trigger says that a loop was stopped; return what it says."""
    said: list[str] = []

    def told() -> bool:
        said[:] = [t["detail"] for t in site.http("GET", "/v1/triggers").json if t["name"] in names]
        return any("a loop was stopped" in detail for detail in said)

    site.await_true(told, f"{names} are stopped")
    return "; ".join(said)


@pytest.mark.parametrize("function", ["beside", "in_front", "in_place", "fixed", "unrelated", "by_child"])
def test_a_loop_is_stopped_and_told(site: System, function: str) -> None:
    folder = deployed(site, f"loop-{function}", function)
    (folder / "scan_1.raw").write_bytes(b"1")
    said = stopped(site, f"loop-{function}")
    assert "`ignore`" in said
    tasks = len(site.tasks(rule=f"loop-{function}"))
    assert MAX_FILE_DEPTH <= tasks <= 2 * MAX_FILE_DEPTH

    def letters() -> list[dict[str, Any]]:
        return [d for d in site.http("GET", "/v1/dead?limit=100").json["items"] if d["rule"] == f"loop-{function}"]

    (letter,) = site.await_true(letters, "a dead letter")
    assert "chain of files" in letter["reason"]
    assert "ignore" in letter["remedy"]


def test_a_loop_that_grows_is_stopped(site: System) -> None:
    folder = deployed(site, "loop-twice", "twice")
    (folder / "s.raw").write_bytes(b"1")
    stopped(site, "loop-twice")
    most = 2 ** (MAX_FILE_DEPTH + 1)
    site.await_true(lambda: not site.tasks(rule="loop-twice", state="open"), "all end", 120)
    assert len(site.tasks(rule="loop-twice")) <= most


def test_a_loop_through_two_folders_is_stopped(site: System) -> None:
    ping = deployed(site, "loop-ping", "there")
    deployed(site, "loop-pong", "back")
    (ping / "scan_1.raw").write_bytes(b"1")
    stopped(site, "loop-ping", "loop-pong")


@pytest.mark.parametrize("pause_s", [0.0, 0.04, 0.15])
def test_files_of_a_detector_are_no_loop(site: System, pause_s: float) -> None:
    """Their tasks run while the next files come."""
    name = f"detector-{round(pause_s * 1000)}"
    folder = deployed(site, name, "count")
    for i in range(60):
        (folder / f"scan_{i}.raw").write_bytes(b"1")
        time.sleep(pause_s)
    site.await_tasks(60, rule=name)
    assert not any(t["detail"] for t in site.http("GET", "/v1/triggers").json if t["name"] == name)


def test_a_file_that_is_updated_regularly_is_no_loop(site: System) -> None:
    folder = deployed(site, "live", "count")
    for i in range(100):
        (folder / "live.raw").write_text(f"{i}")
        time.sleep(0.06)
    emitted = [t for t in site.http("GET", "/v1/triggers").json if t["name"] == "live"]
    assert not emitted[0]["detail"]


@pytest.mark.parametrize("same", [False, True])
def test_a_writer_that_waits_for_each_outcome_is_no_loop(site: System, same: bool) -> None:
    name = f"driver-{same}"
    folder = deployed(site, name, "count")
    for i in range(15):
        (folder / ("job.raw" if same else f"{uuid.uuid4().hex}.raw")).write_text(f"{i}")
        site.await_tasks(i + 1, rule=name)
    assert not any(t["detail"] for t in site.http("GET", "/v1/triggers").json if t["name"] == name)


def test_a_loop_that_is_allowed_goes_on(site: System) -> None:
    folder = deployed(site, "allowed", "unrelated", loops="allow")
    (folder / "scan_1.raw").write_bytes(b"1")
    site.await_true(lambda: len(site.tasks(rule="allowed")) > 4 * MAX_FILE_DEPTH, "it goes on")
    site.oncue("rules", "disable", "allowed")
