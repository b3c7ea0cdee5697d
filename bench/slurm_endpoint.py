"""An endpoint on a Slurm of its own, on this machine (tests/slurm)."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.running import System, system_in
from tests.slurm.cluster import Cluster

NAME = "hpc"
PATIENCE_S = 60.0


def is_here() -> bool:
    """Return True if Slurm is installed here."""
    return shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin") is not None


class SlurmEndpoint:
    """The endpoint's system, its Slurm and its folder."""

    def __init__(self, system: System, cluster: Cluster) -> None:
        self.system, self._cluster = system, cluster
        self.folder = system.folder / NAME

    def status(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "status.json").read_text()))

    def await_no_job(self) -> None:
        self.system.await_true(lambda: not self._cluster.active_jobs(), "all blocks are given back", PATIENCE_S)


@contextmanager
def slurm_endpoint(yaml: str) -> Iterator[SlurmEndpoint]:
    """Start Slurm, a server and the endpoint `hpc`; end them. `{folder}` in `yaml` is its folder."""
    former = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="oncue-slurm-") as name:
        folder = Path(name)
        cluster = Cluster(folder / "slurm")
        try:
            cluster.start()
            os.environ.update({k: cluster.environ[k] for k in ("SLURM_CONF", "PATH")})
            with system_in(folder, "--no-endpoint") as system:
                found, place = SlurmEndpoint(system, cluster), (NAME, "--dir", str(folder / NAME))
                system.oncue("endpoint", "register", *place)
                (found.folder / "endpoint.yaml").write_text(yaml.replace("{folder}", str(folder)))
                system.oncue("endpoint", "start", *place, "--detach")
                try:
                    system.await_connected(NAME)
                    yield found
                finally:
                    system.oncue("endpoint", "stop", *place, "--cancel", code=None)
        finally:
            cluster.stop()
            os.environ.clear()
            os.environ.update(former)
