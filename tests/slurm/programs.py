"""Slurm's programs on this machine."""

from __future__ import annotations

import os
import shutil
import sys

from tests.services import Impossible, Missing

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
REMEDY = "run `make services`, or: apt-get install --no-install-recommends slurm-wlm slurm-wlm-basic-plugins munge"


def program(name: str) -> str:
    """Return the path of one of Slurm's programs. Raises Missing, with the remedy."""
    if sys.platform != "linux":
        raise Impossible("its tests need Linux")
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise Missing(f"{name} is not installed; {REMEDY}")
    return found


def check() -> None:
    """Raise Missing unless all programs are here."""
    for name in NEEDED:
        program(name)
