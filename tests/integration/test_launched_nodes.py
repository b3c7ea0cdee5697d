"""Real node processes, started by a job's script through stand-ins of launchers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from oncue.endpoint.nodes.addresses import read_addresses
from oncue.endpoint.nodes.block_secret import SECRET
from oncue.endpoint.nodes.launch import ADDRESS_FILE, NodeLaunch
from oncue.endpoint.providers.job_files import JobFiles
from oncue.endpoint.providers.job_script import LaunchOptions, write_script
from oncue.endpoint.providers.jobs import JobRequest
from oncue.functions.shell.pack import shell
from oncue.protocol.payload import pack_args, unpack
from tests.integration.node_site import NodeSite
from tests.schedulers.launchers import launched_in, launcher_environment

HOSTS = ("host01", "host02")
REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("launcher", ["mpiexec", "pbsdsh"])  # the command as a word; as a file
def test_a_block_of_two_nodes_runs_tasks_on_both_and_ends_when_told(tmp_path: Path, launcher: str) -> None:
    site = NodeSite(tmp_path)
    where = shell(
        "echo $HOST; touch ${all}/$HOST; while ! [ -e ${all}/host01 -a -e ${all}/host02 ]; do sleep 0.05; done"
    )
    site.bridge.functions[where.id] = where
    (tmp_path / "all").mkdir()
    job = None
    try:
        site.start_agent()
        found = read_addresses(tmp_path / ADDRESS_FILE)
        assert found is not None
        files = JobFiles(tmp_path / "jobs")
        files.bind("1", "m")
        variables = {SECRET: site.keys("b1").secret.decode(), "PYTHONPATH": str(REPOSITORY)}
        command = NodeLaunch(found, tmp_path / ADDRESS_FILE, sys.executable).command("b1", 1)
        request = JobRequest("m", command, nodes=2, environment=variables)
        script = write_script(files, request, [], LaunchOptions(launcher=launcher))  # type: ignore[arg-type]
        with (tmp_path / "job.log").open("wb") as log:
            environ = os.environ | launcher_environment(tmp_path, HOSTS)
            job = subprocess.Popen(["bash", script], env=environ, stdout=log, stderr=log)
        site.bridge.until(lambda: site.changes().count("b1 joined ") == 2)

        for n in (1, 2):
            site.dispatch_payload(where.name, n, pack_args((), {"all": str(tmp_path / "all")}))
        site.bridge.until(lambda: len(site.bridge.ended) == 2)
        job.send_signal(signal.SIGTERM)

        assert {unpack(e.value)["stdout"].strip() for e in site.bridge.ended} == set(HOSTS)
        assert (job.wait(60), files.exit_code("1")) == (0, 0)
        assert [host for *_, host in launched_in(tmp_path)] == list(HOSTS)
        site.bridge.until(lambda: sum("b1 left" in line for line in site.changes()) == 2)
    finally:
        if job is not None and job.poll() is None:
            job.kill()
            job.wait()
        site.close()
