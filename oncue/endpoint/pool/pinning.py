"""Cores and GPUs of each worker of a pool: it uses its own, and sees no others.

A worker's cores are in ONCUE_CORES, which it obeys when it starts (affinity). Its GPUs are in the
variables that CUDA, ROCm and Level Zero read. Both are read once, so a task that takes the room of
several workers runs in a new one, which has the cores and GPUs of all of these.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from oncue.endpoint.worker.affinity import CORES
from oncue.endpoint.worker.mpi_run import ALL_GPUS

T = TypeVar("T")
#: Variables with the GPUs that a process may use: of CUDA, ROCm, Level Zero.
GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
_NVIDIA = re.compile(r"nvidia\d+")
_AMD_NODES = Path("/sys/class/kfd/kfd/topology/nodes")


class Pinning(msgspec.Struct, frozen=True):
    """Kind of the pinning; cores and GPUs of each worker (0: an equal share)."""

    kind: Literal["cores", "gpus"]
    cores: int = 0
    gpus: int = 0


def gpu_devices(environ: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the GPUs that are visible here, by the variables that choose among them."""
    found = {name: listed(environ[name]) for name in GPU_VARIABLES if environ.get(name)}
    if found:
        return found
    try:
        nvidia = sum(bool(_NVIDIA.fullmatch(name)) for name in os.listdir("/dev"))
    except OSError:
        nvidia = 0
    if nvidia:
        return {GPU_VARIABLES[0]: [str(n) for n in range(nvidia)]}
    amd = _amd_gpus()
    return {GPU_VARIABLES[1]: [str(n) for n in range(amd)]} if amd else {}


def listed(text: str) -> list[str]:
    """Return the devices that a variable names."""
    return [d.strip() for d in text.split(",") if d.strip() and d.strip() != "-1"]


def _amd_gpus() -> int:
    """Return the number of nodes in AMD's topology that have a GPU's id."""
    try:
        ids = [path.read_text().strip() for path in _AMD_NODES.glob("*/gpu_id")]
    except OSError:
        return 0
    return sum(text not in ("", "0") for text in ids)


def worker_variables(
    pinning: Pinning | None, workers: int, cores: Sequence[int], gpus: Mapping[str, Sequence[str]]
) -> list[dict[str, str]]:
    """Return the variables of each worker, by its number.

    Workers share cores or GPUs if there are fewer than they need.
    """
    found: list[dict[str, str]] = [{} for _ in range(workers)]
    if pinning is None:
        return found
    for number, variables in enumerate(found):
        if pinning.kind == "gpus":
            variables |= {name: ",".join(_share(given, number, workers, pinning.gpus)) for name, given in gpus.items()}
            variables |= {f"{ALL_GPUS}{name}": ",".join(given) for name, given in gpus.items()}
        if cores:
            variables[CORES] = ",".join(map(str, _share(cores, number, workers, pinning.cores)))
    return found


def _share(given: Sequence[T], number: int, workers: int, each: int) -> list[T]:
    """Return one worker's share: neighbours, since they share caches and links."""
    size = min(each or max(1, len(given) // workers), len(given))
    first = number * size
    return [given[(first + n) % len(given)] for n in range(size)]


def union(variables: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the variables of one worker that has what several are pinned to."""
    names = dict.fromkeys(name for each in variables for name in each)
    return {
        name: ",".join(dict.fromkeys(device for each in variables for device in listed(each.get(name, ""))))
        for name in names
    }


def cores_here() -> list[int]:
    """Return the cores that this process may use; [] where affinity is not supported."""
    return sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []
