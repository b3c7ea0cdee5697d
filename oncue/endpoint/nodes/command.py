"""Command line of a node's process (endpoint/node.py), and its start."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import psutil
import zmq

from oncue import curve
from oncue.disk.private_files import make_files_private
from oncue.endpoint.containers.catalog import CONTAINERS, NONE
from oncue.endpoint.nodes.addresses import AddressCycle
from oncue.endpoint.nodes.block_secret import JOB_BEGAN, KEY_FD, SECRET
from oncue.endpoint.nodes.node_folder import node_folder
from oncue.endpoint.nodes.process import NodeOptions, NodeProcess
from oncue.endpoint.options.apply import resources_here, worker_count
from oncue.endpoint.options.options import WorkerOptions
from oncue.endpoint.pool.limits import WorkerLimits
from oncue.endpoint.pool.pinning import Pinning
from oncue.endpoint.worker.mpi_run import LAUNCHER, SHARED
from oncue.errors import Invalid, OncueError, Refused
from oncue.processes.children import adopt_orphans
from oncue.processes.garbage_collection import collect_seldom, keep_what_is_here
from oncue.processes.secrecy import hide_from_tasks
from oncue.text.log_lines import log_to


def read_keys(fd: int) -> curve.Keys:
    """Return the block's keys, by the secret that waits in a pipe. Raises Invalid."""
    if fd < 0:
        raise Invalid(f"the variable {SECRET} is not set", remedy="the job script of the agent sets it")
    try:
        with os.fdopen(fd, "rb") as pipe:
            secret = pipe.read(1_000)
        return curve.Keys(zmq.curve_public(secret), secret)
    except (OSError, ValueError, zmq.ZMQError) as e:
        raise Invalid(f"{SECRET} is not a CURVE key: {e}", remedy="the job script of the agent sets it") from None


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="oncue.endpoint.node", description="Run the workers of a node.")
    found.add_argument("--block", required=True, help="id of the block")
    found.add_argument("--agent", required=True, action="append", help="tcp://HOST:PORT of the agent; may be repeated")
    found.add_argument("--agent-key", required=True, help="the agent's public key")
    found.add_argument("--address-file", type=Path, help="file where the agent writes its address, if it is seen here")
    found.add_argument("--workers", type=int, default=0, help="0: as many as fit")
    found.add_argument("--folder", type=Path, help="for this node's files; a new one in $TMPDIR if not given")
    found.add_argument("--container", default=NONE, choices=sorted(CONTAINERS))
    found.add_argument("--pass-env", action="append", default=[], help="glob of variables that workers get")
    found.add_argument("--threads", type=int, default=0, help="of numerical libraries, in each worker")
    found.add_argument("--mpi", default="", help="command line that starts the ranks of MPI functions")
    found.add_argument("--pin", choices=("cores", "gpus"), help="give each worker its own cores, or GPUs and cores")
    found.add_argument("--worker-cores", type=int, default=0, help="of each worker")
    found.add_argument("--worker-memory-bytes", type=int, default=0, help="of each worker")
    found.add_argument("--worker-gpus", type=int, default=0, help="of each worker")
    found.add_argument("--max-tasks", type=int, default=0, help="after which a worker is replaced")
    found.add_argument("--max-memory-bytes", type=int, default=0, help="after which a worker is replaced")
    found.add_argument("--grace-s", type=float, default=1.0, help="for running tasks, after SIGTERM")
    found.add_argument("--away-s", type=float, default=1_800.0, help="without an agent, until an idle node exits")
    found.add_argument(KEY_FD, type=int, default=-1, help=argparse.SUPPRESS)
    found.add_argument(JOB_BEGAN, type=float, default=0.0, help="unix time of the job's start")
    return found


def run_node(argv: list[str] | None = None) -> int:
    """Run the node of these arguments. Return its exit code."""
    given = parser().parse_args(argv)
    log_to()
    make_files_private()
    hide_from_tasks()
    try:
        with node_folder(given.folder, given.block) as folder:
            return _run(given, folder)
    except (OncueError, OSError) as e:
        print(f"{type(e).__name__}: {e}", file=sys.stderr)  # noqa: T201
        return e.exit_code if isinstance(e, OncueError) else 1


def job_age_s(began_s: float) -> float:
    """Return the age of this node's job, at least of this process."""
    now_s = time.time()
    mine_s = float(psutil.Process().create_time())
    return max(now_s - mine_s, now_s - began_s if began_s > 0 else 0.0)


def _environment(given: argparse.Namespace) -> dict[str, str]:
    """Return the variables that tell workers how tasks over several nodes are run."""
    found = {LAUNCHER: given.mpi}
    if given.address_file is not None and os.access(given.address_file.parent, os.W_OK):
        found[SHARED] = str(given.address_file.parent)
    return found


def _run(given: argparse.Namespace, folder: Path) -> int:
    """Run the node. Raises OncueError, OSError."""
    keys = read_keys(given.key_fd)
    needs = WorkerOptions(
        cores=given.worker_cores or None, memory=given.worker_memory_bytes or None, gpus=given.worker_gpus or None
    )
    workers = given.workers or worker_count(needs, resources_here())
    process = NodeProcess(
        NodeOptions(given.block, workers, folder, given.grace_s, given.away_s, job_age_s(given.job_began)),
        keys,
        AddressCycle(given.agent, given.agent_key, given.address_file),
        adopts=adopt_orphans(),
        container=CONTAINERS[given.container](),
        pass_env=tuple(given.pass_env),
        environment=_environment(given),
        limits=WorkerLimits(given.threads, given.max_tasks, given.max_memory_bytes),
        pinning=Pinning(given.pin, given.worker_cores, given.worker_gpus) if given.pin else None,
    )
    keep_what_is_here()
    collect_seldom()
    try:
        process.run()
    except Refused as e:
        print(f"Refused: {e}", file=sys.stderr)  # noqa: T201
        return e.exit_code
    finally:
        process.close()
    return 0
