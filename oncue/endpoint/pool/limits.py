"""Limits of each worker: tasks, memory, threads of numerical libraries."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

import msgspec

from oncue.endpoint.pool.granted_cores import granted_cores, quota_cores

#: Variables by which libraries choose their number of threads. Unset, they take all cores.
THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "POLARS_MAX_THREADS",
)
MAX_TASKS, MAX_MEMORY = "ONCUE_MAX_TASKS", "ONCUE_MAX_MEMORY"  # variables of a worker


class WorkerLimits(msgspec.Struct, frozen=True):
    """Limits after which a worker is replaced, and its threads; 0 means the default."""

    threads: int = 0  # by default cores / workers
    max_tasks: int = 0  # by default any number
    max_memory_bytes: int = 0  # that it may hold between tasks; by default any


def limit_variables(limits: WorkerLimits, workers: int, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of workers that tell limits.

    Those that are set already stay. OMP_NUM_THREADS, if it is set, holds for the other libraries
    too.
    """
    threads = limits.threads or max(1, cores() // max(workers, 1))
    given = environ.get("OMP_NUM_THREADS", "")
    found = {name: given or str(threads) for name in THREADS if name not in environ}
    if limits.max_tasks:
        found[MAX_TASKS] = str(limits.max_tasks)
    if limits.max_memory_bytes:
        found[MAX_MEMORY] = str(limits.max_memory_bytes)
    return found


def cores() -> int:
    """Return the number of cores that this process may use."""
    here = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(here, granted_cores(os.environ, quota_cores()) or here)
