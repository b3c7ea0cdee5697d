"""An endpoint with blocks of a real Grid Engine, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.running import PATIENCE_S, System
from tests.gridengine.cell import Cell

YAML = """\
provider: {kind: gridengine, queue: all.q}
blocks: {max: 2, walltime: 10m, idle: 2s}
workers: {cores: 1}
limits: {submits: 100/min}
"""
SLOW_S = 4 * PATIENCE_S
SCRIPT = """\
import json, os
import oncue

def worker(n):
    return n, os.environ["ONCUE_WORKER"], os.environ["JOB_ID"]

with oncue.Client() as client:
    print(json.dumps([t.result(timeout=120) for t in client.map(worker, range(40), endpoint="sge")]))
"""


class Site:
    """A server and an endpoint on a machine of the cell: its network is the cell's."""

    def __init__(self, folder: Path, cell: Cell) -> None:
        self.system, self._cell = System(folder, PATH=cell.environ["PATH"]), cell
        self.folder = folder / "sge"

    def run(self, *command: str) -> str:
        done = subprocess.run(
            [*self._cell.inside, *command],
            env=self.system.env,
            cwd=self.system.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def oncue(self, *words: str) -> str:
        return self.run(sys.executable, "-m", "oncue", *words)

    def jobs(self) -> str:
        return self.run("qstat", "-u", "*")


@pytest.fixture
def site(tmp_path: Path, gridengine: Cell) -> Iterator[Site]:
    found = Site(tmp_path, gridengine)
    try:
        found.oncue("up", "--no-endpoint", "--detach")
        yield found
    finally:
        if (found.folder / "agent.json").exists():
            found.oncue("endpoint", "stop", "sge", "--dir", str(found.folder))
        found.system.end()


def test_blocks_come_and_go_and_use_no_more_than_their_slots(site: Site) -> None:
    place = ("sge", "--dir", str(site.folder))
    site.oncue("endpoint", "register", *place)
    (site.folder / "endpoint.yaml").write_text(YAML)
    site.oncue("endpoint", "start", *place, "--detach")
    assert not site.jobs()

    found = json.loads(site.run(sys.executable, "-c", SCRIPT))

    assert [n for n, _, _ in found] == list(range(40))
    assert {worker for _, worker, _ in found} == {"0"}, "a job of one slot has one worker"
    site.system.await_true(lambda: not site.jobs(), "idle blocks are given back", SLOW_S, every_s=0.2)
    assert "block" in (site.folder / "agent.log").read_text()
