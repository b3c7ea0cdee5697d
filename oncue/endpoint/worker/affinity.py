"""Cores of a worker that is pinned (pool/pinning.py)."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping

CORES = "ONCUE_CORES"  # variable of a worker: 0,1,2


def pin_to_cores(environ: Mapping[str, str]) -> None:
    """Use only the cores that the worker's variable names, if any."""
    cores = environ.get(CORES)
    if cores and sys.platform == "linux":
        with contextlib.suppress(OSError):  # they were taken from this job meanwhile
            os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
