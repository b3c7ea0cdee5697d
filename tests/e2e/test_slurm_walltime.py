"""The end of a job's time on a real Slurm, whose shortest limit is a minute: `make soak` runs this."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import or_skipped
from tests.e2e.test_slurm_endpoint import YAML, SlurmEndpoint, slurm_endpoint
from tests.slurm.cluster import Cluster

pytestmark = pytest.mark.skipif("ONCUE_SOAK" not in os.environ, reason="it takes two minutes: run `make soak`")
LIMIT_S = 400.0


def hold(note: str, release: str) -> str:
    """Write down where it begins, and whether it is told to end; end once `release` is there."""

    def write(word: str) -> None:
        with open(note, "a") as file:
            file.write(f"{word} {os.environ.get('SLURM_JOB_ID', '')}\n")

    write("begun")
    try:
        while not os.path.exists(release):
            time.sleep(0.05)
    except BaseException:
        write("told")
        raise
    return "done"


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmEndpoint]:
    """An endpoint on a cluster that gives jobs as much time after SIGTERM as sites do."""
    with or_skipped("Slurm"):
        slurm = Cluster(tmp_path / "slurm", remember_s=3_600, kill_wait_s=30)
    try:
        slurm.start()
        for name in ("SLURM_CONF", "PATH"):
            monkeypatch.setenv(name, slurm.environ[name])
        with slurm_endpoint(tmp_path, slurm) as found:
            yield found
    finally:
        slurm.stop()


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("options", "ending"),
    [
        pytest.param({"walltime: 10m": "walltime: 1m"}, {"COMPLETED", "CANCELLED"}, id="known to the agent"),
        pytest.param(
            {"cores_per_node: 2": 'cores_per_node: 2, scheduler_options: "#SBATCH --time=1"'},
            {"TIMEOUT", "COMPLETED"},
            id="known to Slurm only",
        ),
    ],
)
def test_at_the_end_of_the_walltime_tasks_are_told_in_time_and_run_elsewhere_uncharged(
    endpoint: SlurmEndpoint, tmp_path: Path, options: dict[str, str], ending: set[str]
) -> None:
    yaml = YAML
    for old, new in options.items():
        yaml = yaml.replace(old, new)
    (endpoint.folder / "endpoint.yaml").write_text(yaml)
    endpoint.start()
    note, release = tmp_path / "note", tmp_path / "release"

    def begun() -> list[str]:
        lines = note.read_text().splitlines() if note.exists() else []
        return [line for line in lines if line.startswith("begun")]

    with endpoint.system.client() as client:
        task = client.submit(hold, str(note), str(release), endpoint="hpc")
        client.flush()
        endpoint.system.await_true(lambda: len(begun()) == 2, "the task runs a second time", LIMIT_S)
        release.touch()
        assert task.result(LIMIT_S) == "done"
        seen = client.tasks.get(task.id)

    assert [a.n for a in seen.attempts] == [1], "it was not charged"
    assert len(endpoint.jobs()) == 2, "on another block"
    states = endpoint.slurm.jobs()
    assert states[min(endpoint.jobs(), key=int)] in ending
    with contextlib.suppress(AssertionError):  # a Python task is ended by a signal; it may not notice
        assert "told" in note.read_text()
