"""The page's five minutes on a batch scheduler, run on a real Slurm as a new user would."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.running import PATIENCE_S, System
from tests.slurm.cluster import Cluster

PAGE = Path(__file__).parents[2] / "docs" / "endpoints.md"
SECTION = re.compile(r"^### In five minutes\n(.*?)^### ", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SLOW_S = 4 * PATIENCE_S


@pytest.fixture
def system(tmp_path: Path, slurm: Cluster) -> Iterator[System]:
    """Return a machine where `oncue` is in the PATH, as after an installation."""
    command = tmp_path / "bin" / "oncue"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m oncue "$@"\n')
    command.chmod(0o755)
    found = System(tmp_path, PATH=f"{command.parent}:{os.environ['PATH']}")
    try:
        yield found
    finally:
        found.oncue("endpoint", "stop", "hpc", code=None)
        found.end()


def test_the_first_five_minutes_on_slurm(system: System, slurm: Cluster) -> None:
    section = SECTION.search(PAGE.read_text())
    assert section is not None
    scripts = []
    for language, text in FENCE.findall(section[1]):
        if language == "sh":
            scripts.append(text)
        else:
            system.write(text.partition("\n")[0].removeprefix("# "), text)
    set_up, drop, look = scripts

    said = shell(system, set_up.replace("start hpc --detach", "start hpc --detach --wait 120s"))
    assert "endpoint.yaml is valid" in said
    assert "WRONG" not in said
    assert not slurm.active_jobs(), "nothing is asked for without work"
    shell(system, drop)
    done = lambda: len(system.tasks(rule="measure", state="succeeded")) == 200  # noqa: E731
    system.await_true(done, "200 files are measured", SLOW_S, every_s=0.2)
    assert len(system.tasks(rule="measure")) == 200, "each once"
    # The agent writes its status every two seconds, and the tasks may have taken less.
    told = lambda: system.json("endpoint", "status", "hpc")["status"]["blocks"]  # noqa: E731
    system.await_true(told, "the status has the blocks", every_s=0.2)
    said = shell(system, look)

    assert "succeeded" in said
    assert "BLOCK" in said, "blocks with their state"
    assert not slurm.active_jobs(), "stopped"


def shell(system: System, script: str) -> str:
    done = subprocess.run(
        ["/bin/bash", "-eu", "-c", script],
        env=system.env,
        cwd=system.folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SLOW_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
