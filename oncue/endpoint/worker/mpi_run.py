"""Command and environment of ranks, and of tasks over several nodes."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import socket
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from oncue.errors import Invalid
from oncue.protocol.run_options import RunOptions

LAUNCHER = "ONCUE_MPI_LAUNCHER"  # variable of a worker: the site's command line, with placeholders
SHARED = "ONCUE_SHARED"  # variable of a worker: the endpoint's folder, if its node sees it
ALL_GPUS = "ONCUE_ALL_"  # before the name of a variable: GPUs of the node, not of the worker
HOSTFILE = "hosts"
#: Variables by which an outer launcher would tell the inner one, or the ranks, a wrong layout.
_LAYOUT = re.compile(
    r"SLURM_(?!JOB_|JOBID$|CONF$|CLUSTER|NODELIST$|TASKS_PER_NODE$)|PMI|PALS_|OMPI_COMM_|ALPS_|MPI_LOCAL"
)
#: Variables of a rank's number, by launcher.
_RANK = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "PALS_RANKID", "ALPS_APP_PE", "SLURM_PROCID")


class Layout(msgspec.Struct, frozen=True):
    """Nodes and ranks of a task."""

    hosts: tuple[str, ...]
    ranks: int
    cores: int  # of each node; 0: not stated

    @property
    def ranks_per_node(self) -> int:
        return -(-self.ranks // len(self.hosts))


def layout_of(options: RunOptions, environ: Mapping[str, str]) -> Layout:
    """Return nodes and ranks of a task. Without a reservation it has this node."""
    hosts = options.hosts or (environ.get("SLURMD_NODENAME") or socket.gethostname(),)
    resources = options.resources
    return Layout(hosts, resources.ranks or len(hosts), resources.cores)


def layout_variables(layout: Layout, hostfile: Path) -> dict[str, str]:
    """Write the hosts to a file; return the variables by which a task finds its nodes."""
    hostfile.write_text("".join(f"{host}\n" for host in layout.hosts))
    return {
        "ONCUE_NODES": str(len(layout.hosts)),
        "ONCUE_RANKS": str(layout.ranks),
        "ONCUE_HOSTS": ",".join(layout.hosts),
        "ONCUE_HOSTFILE": str(hostfile),
    }


def launch_words(template: str, layout: Layout, hostfile: Path, names: Iterable[str], cpus: int) -> list[str]:
    """Return the command line that starts the ranks, to which their command is added.

    `names`: of the task's variables. `cpus`: that the job has on a node; 0: not known.
    """
    most = layout.ranks_per_node
    cores = max(1, (layout.cores or (cpus if len(layout.hosts) > 1 else 0)) // most)
    too_many = cpus and most * cores > cpus
    text = template.format(
        nodes=len(layout.hosts),
        ranks=layout.ranks,
        ranks_per_node=most,
        hosts=",".join(layout.hosts),
        host_slots=",".join(f"{host}:{most}" for host in layout.hosts),
        hostfile=shlex.quote(str(hostfile)),
        cores_per_rank=cores,
        slurm_cores="--overcommit" if too_many else f"--exact --cpus-per-task={cores}",
        exports=" ".join(f"-x {name}" for name in names),
    )
    return shlex.split(text)


def missing_launcher(template: str) -> str:
    """Return why ranks cannot be started here; "" if they can."""
    program = shlex.split(template)[0] if template else "mpiexec"
    if template and shutil.which(program) is not None:
        return ""
    return (
        f"an MPI function needs a launcher, and there is no {program} here: install an MPI, load its module in "
        "`worker_init`, or name another launcher in endpoint.yaml (mpi: {launcher: ...})"
    )


def ranks_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without an outer launcher's part, and with all GPUs."""
    found = {name: value for name, value in environ.items() if not _LAYOUT.match(name)}
    for name in environ:
        if name.startswith(ALL_GPUS):
            found[name.removeprefix(ALL_GPUS)] = found.pop(name)
    if "SLURM_JOB_ID" in found:
        found["SLURM_OVERLAP"] = "1"  # for the srun that other launchers call
    return found


def use_all_cores() -> None:
    """Use the cores of the whole node. The worker restores its own later."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()))


def rank_script(script: str) -> str:
    """Return a script that also knows the number of its rank."""
    number = "".join(f"${{{name}:-" for name in _RANK) + "0" + "}" * len(_RANK)
    return f'export ONCUE_RANK="{number}"; {script}'


def work_folder(environ: Mapping[str, str]) -> Path:
    """Return a working directory that all nodes of a task see."""
    if not environ.get(SHARED):
        return Path.home()
    work = Path(environ[SHARED]) / "work"
    work.mkdir(exist_ok=True)
    return work


def shared_folder(environ: Mapping[str, str]) -> Path:
    """Return the endpoint's folder, which all nodes see. Raises Invalid."""
    folder = environ.get(SHARED, "")
    if not folder:
        raise Invalid(
            "a sandbox over several nodes needs a folder that all of them see, and the endpoint's is not seen here",
            remedy="state `cwd`, a folder on a shared file system, instead of a sandbox",
        )
    return Path(folder)
