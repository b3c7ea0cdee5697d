"""Commented `endpoint.yaml` files, by scheduler and by site.

The texts are in `presets/`. A value that only the user knows is PLACEHOLDER there; a file with one
is refused, with its place (file.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.resources import files

from oncue.endpoint.options.file import PLACEHOLDER
from oncue.errors import Invalid

LOCAL = "local"
#: Name: what it is for.
PRESETS = {
    LOCAL: "workers on this machine",
    "slurm": "jobs of Slurm",
    "pbspro": "jobs of PBS Professional or OpenPBS",
    "torque": "jobs of Torque",
    "lsf": "jobs of IBM Spectrum LSF",
    "gridengine": "jobs of Grid Engine",
    "condor": "jobs of HTCondor",
    "kubernetes": "Jobs of Kubernetes",
    "parsl": "jobs of a provider of Parsl, such as AWSProvider; needs oncue[hpc]",
    "polaris": "Polaris of ALCF (PBS)",
    "aurora": "Aurora of ALCF (PBS)",
    "perlmutter": "Perlmutter of NERSC (Slurm)",
    "frontier": "Frontier of OLCF (Slurm)",
}
#: Commands that only machines with the scheduler have. PBS, Torque and Grid Engine share `qsub`.
COMMANDS = {
    "sbatch": "slurm",
    "bsub": "lsf",
    "qconf": "gridengine",
    "pbs_rstat": "pbspro",
    "pbsnodes": "pbspro",
    "condor_submit": "condor",
}


def preset_text(preset: str, name: str) -> str:
    """Return the text of an `endpoint.yaml` for this endpoint. Raises Invalid."""
    if preset not in PRESETS:
        raise Invalid(f"there is no preset {preset[:60]!r}", remedy=f"there are: {', '.join(PRESETS)}")
    parts = ["head", preset, *([] if preset == LOCAL else ["limits"]), "common"]
    folder = files("oncue.endpoint.options") / "presets"
    text = "".join((folder / f"{part}.yaml").read_text("utf-8") for part in parts)
    return text.replace("NAME", name)


def placeholders(text: str) -> list[int]:
    """Return the numbers of the lines that the user must complete."""
    return [n for n, line in enumerate(text.splitlines(), 1) if f" {PLACEHOLDER}" in line]


def detect(which: Callable[[str], str | None] = shutil.which) -> str:
    """Return the preset of the scheduler whose commands are here, else LOCAL."""
    return next((preset for command, preset in COMMANDS.items() if which(command)), LOCAL)
