"""Upgrade from commit 92efd48: its data folder, agents' folders and Kafka topics go on under the present code.

The archives also hold what that commit itself made of its folders afterwards: the present code must do the same."""

from __future__ import annotations

import fcntl
import json
import shutil
import sqlite3
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import or_skipped
from tests.e2e.running import System
from tests.e2e.stored.write import ROOT, continue_on, environment
from tests.kafka.broker import Broker

STORED = Path(__file__).with_name("stored")


@pytest.fixture
def unpack() -> Iterator[Callable[[str], dict[str, Any]]]:
    """Unpack an archive into the folder whose path it holds, and return its facts. One test at a time uses the folder."""

    def run(kind: str) -> dict[str, Any]:
        shutil.rmtree(ROOT, ignore_errors=True)
        with tarfile.open(STORED / f"{kind}-92efd48.tar.xz") as archive:
            archive.extractall(ROOT, filter="data")
        return dict(json.loads((ROOT / "facts.json").read_text()))

    with ROOT.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield run
        finally:
            shutil.rmtree(ROOT, ignore_errors=True)


def adopt_inodes() -> None:
    """Give the file trigger the unpacked files' inodes: with other ones they are changed files."""
    (ledger,) = (ROOT / "data/triggers/frames").glob("*.db")
    db = sqlite3.connect(ledger)
    names = [name for (name,) in db.execute("SELECT name FROM files")]
    assert sorted(names) == ["fired.raw", "old.raw"]
    for name in names:
        db.execute("UPDATE files SET ino = ? WHERE name = ?", ((ROOT / "incoming" / name).stat().st_ino, name))
    db.commit()
    db.close()


def without_pickled(seen: dict[str, Any], *ids: str) -> dict[str, Any]:
    return seen | {"tasks": [t for t in seen["tasks"] if t[0] not in ids]}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", ["embedded", "kafka"])
def test_what_an_earlier_commit_stored_goes_on(kind: str, unpack: Callable[[str], dict[str, Any]]) -> None:
    facts = unpack(kind)
    adopt_inodes()
    broker = Broker(ROOT / "broker") if kind == "kafka" else None
    if broker:
        with or_skipped():
            broker.start()
    shift_s = facts["stored_s"] + 60 - int(time.time())
    clock = {"PYTHONPATH": str(STORED / "clock"), "ONCUE_TEST_CLOCK_SHIFT_S": str(shift_s)}
    system = System(ROOT, ROOT / "data", **environment(kind, broker.address if broker else ""), **clock)
    try:
        seen = continue_on(system)
        same_python = list(sys.version_info[:2]) == facts["python"]
        # Another minor version of Python cannot run a function that was pickled by this one.
        passed_over = () if same_python else (facts["pickled_waiting"],)
        for moment in ("first", "last"):
            expected = without_pickled(facts[moment], *passed_over)
            found = without_pickled(seen[moment], *passed_over)
            for what in expected:
                assert found[what] == expected[what], (moment, what)
        with system.client() as client:
            assert client.task(facts["pickled"]).result(30) == {1, 2}
            if same_python:
                assert client.task(facts["pickled_waiting"]).result(30) == {3}
        event = {"type": "other", "source": "/stored", "data": {}}
        assert system.http("POST", "/v1/events", event, token=facts["token"]).status == 202
        assert system.http("GET", "/v1/tasks", token=facts["token"]).status == 403
    finally:
        system.end()
        if broker:
            broker.kill()
