"""Cores that a batch scheduler or a container has granted to this process.

Not every scheduler confines a job to its cores: the affinity then shows the whole machine, and a
pool of so many workers would take the cores of other people's jobs.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

NODE_CORES = "ONCUE_NODE_CORES"  # variable of a job's script: `cores_per_node` of endpoint.yaml
_QUOTAS = (Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"))
_PERIOD = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


def granted_cores(environ: Mapping[str, str], quota: float | None = None) -> int | None:
    """Return the number of cores granted on this host; None if nothing says so.

    `quota` is the limit of the control group, in cores.
    """
    found = [
        _number(environ.get(NODE_CORES)),
        _number(environ.get("SLURM_CPUS_ON_NODE")) if "SLURM_JOB_ID" in environ else None,
        _of_grid_engine(environ) if "SGE_ROOT" in environ and "JOB_ID" in environ else None,
        _number(environ.get("PBS_NUM_PPN") or environ.get("NCPUS")) if "PBS_JOBID" in environ else None,
        _of_lsf(environ.get("LSB_MCPU_HOSTS", "").split()) if "LSB_JOBID" in environ else None,
        _of_condor(environ.get("_CONDOR_MACHINE_AD", "")),
        None if quota is None else max(1, int(quota)),
    ]
    return min((n for n in found if n is not None), default=None)


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() and int(text) else None


def _of_grid_engine(environ: Mapping[str, str]) -> int | None:
    """Return the slots on this host: by $PE_HOSTFILE, or NSLOTS of a job on one host."""
    try:
        lines = Path(environ.get("PE_HOSTFILE", "")).read_text().splitlines()
    except OSError:
        lines = []
    found = next((words[1] for words in map(str.split, lines) if len(words) > 1 and _is_here(words[0])), None)
    if found is not None:
        return _number(found)
    return _number(environ.get("NSLOTS")) if environ.get("NHOSTS", "1") == "1" else None


def _of_lsf(words: Sequence[str]) -> int | None:
    """Return the slots on this host, by a list of hosts and slots in turn."""
    return next((_number(slots) for host, slots in zip(words[::2], words[1::2], strict=False) if _is_here(host)), None)


def _of_condor(ad: str) -> int | None:
    """Return the cores of the slot, by the file with its description."""
    try:
        lines = Path(ad).read_text().splitlines() if ad else []
    except OSError:
        return None
    return next(
        (_number(line.partition("=")[2].strip()) for line in lines if line.split("=")[0].strip() == "Cpus"), None
    )


def _is_here(host: str) -> bool:
    return host.partition(".")[0] == socket.gethostname().partition(".")[0]


def quota_cores() -> float | None:
    """Return the limit of this process's control group, in cores; None if it has none."""
    try:
        if _QUOTAS[0].exists():
            quota, period = _QUOTAS[0].read_text().split()[:2]
        else:
            quota, period = _QUOTAS[1].read_text().strip(), _PERIOD.read_text().strip()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # there is none, or it is "max"
        return None
