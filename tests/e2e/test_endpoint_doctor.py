"""`oncue endpoint doctor`: one probe job says what works, on real Slurm."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.running import System
from tests.slurm.cluster import Cluster

pytestmark = pytest.mark.embedded

YAML = """
provider: {{kind: slurm, exclusive: false, cores_per_node: 1, launcher: simple, command_timeout: 20s{more}}}
network: {{address: 127.0.0.1}}
"""


class Doctor:
    """`oncue endpoint doctor` of an endpoint that is registered, and whose agent does not run."""

    def __init__(self, system: System, folder: Path) -> None:
        self.system, self.folder = system, folder
        self.place = ("probed", "--dir", str(folder))
        system.oncue("endpoint", "register", *self.place)

    def configure(self, more: str = "") -> None:
        (self.folder / "endpoint.yaml").write_text(YAML.format(more=more))

    def check(self, *words: str, code: int = 0) -> dict[str, dict[str, Any]]:
        done = self.system.oncue(
            "endpoint", "doctor", *self.place, "--wait", "60s", *words, "--json", code=code, env=dict(os.environ)
        )
        return {f["check"]: f for f in json.loads(done.stdout)}


@pytest.fixture
def doctor(shared: System, tmp_path: Path) -> Iterator[Doctor]:
    yield Doctor(shared, tmp_path / "probed")
    shared.oncue("endpoints", "revoke", "probed", "--yes", code=None)


def test_a_local_endpoint_is_checked_without_a_job(doctor: Doctor) -> None:
    found = doctor.check()

    assert list(found) == ["settings", "server", "agent"]
    (own,) = [f for f in doctor.system.json("doctor", "--endpoint", "local") if f["check"] == "settings"]
    assert own["found"].startswith("local, local, in ")
    (doctor.folder / "endpoint.yaml").write_text("workers: {per_nod: 1}\n")
    assert "has no key 'per_nod'" in doctor.check(code=1)["settings"]["found"]


def test_a_probe_job_says_step_by_step_what_works(doctor: Doctor, slurm: Cluster) -> None:
    doctor.configure()

    found = doctor.check()

    assert list(found) == [
        "settings", "server", "agent", "commands", "submit", "queue", "node", "network", "python", "packages", "folder",
    ]  # fmt: skip
    assert "tcp://127.0.0.1:" in found["network"]["found"]
    assert found["python"]["found"].startswith(platform.python_version())
    assert "zmq" in found["packages"]["found"]
    assert not slurm.active_jobs()
    assert "ok    network: tcp://127.0.0.1:" in doctor.system.oncue(
        "endpoint", "doctor", *doctor.place, env=dict(os.environ)
    ).stdout.replace("\x1b[32m", "").replace("\x1b[0m", "")


def test_a_job_that_fails_shows_its_own_output(doctor: Doctor, slurm: Cluster) -> None:
    doctor.configure(', worker_init: "echo no such module >&2; exit 3"')

    found = doctor.check(code=1)["node"]

    assert not found["ok"]
    assert "exit 3" in found["found"]
    assert "no such module" in found["found"]
    assert not slurm.active_jobs()


def test_a_job_that_is_refused_has_the_schedulers_words(doctor: Doctor, slurm: Cluster) -> None:
    doctor.configure(", partition: nowhere")

    found = doctor.check(code=1)

    assert list(found)[-1] == "submit"
    assert "invalid partition" in found["submit"]["found"].lower()


def test_a_job_that_waits_is_cancelled_with_the_reason(doctor: Doctor, slurm: Cluster) -> None:
    doctor.configure(', scheduler_options: "#SBATCH --begin=now+1hour"')

    found = doctor.check("--wait", "3s", code=1)["queue"]

    assert "still waits" in found["found"]
    assert "BeginTime" in found["found"]
    doctor.system.await_true(lambda: not slurm.active_jobs(), "the probe is cancelled")
