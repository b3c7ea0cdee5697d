"""Settings of an agent: those of `agent.json`, overridden by `endpoint.yaml`.

`agent.json` says who the endpoint is and which server it dials; the commands write it. People write
`endpoint.yaml`. Where both state a value, `endpoint.yaml` wins.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
import psutil

from oncue.endpoint.options.options import EndpointOptions, WorkerOptions
from oncue.endpoint.options.providers import LocalOptions
from oncue.endpoint.pool.limits import cores
from oncue.endpoint.pool.pinning import Pinning, gpu_devices
from oncue.endpoint.settings import EndpointSettings
from oncue.errors import Invalid


class NodeResources(msgspec.Struct, frozen=True):
    """Cores, memory and GPUs of a node that its workers share."""

    cores: int
    memory_bytes: int
    gpus: int


def resources_here(environ: Mapping[str, str] = os.environ) -> NodeResources:
    """Return the resources that this process may use."""
    memory = min(psutil.virtual_memory().total, _memory_limit())
    return NodeResources(cores(), memory, _gpus(environ))


def worker_count(options: WorkerOptions, node: NodeResources) -> int:
    """Return how many workers a node gets. Raises Invalid if not one of them fits."""
    if options.per_node is not None:
        return options.per_node
    shares = {
        "cores": (options.cores, node.cores),
        "memory": (options.memory, node.memory_bytes),
        "gpus": (options.gpus, node.gpus),
    }
    counts = {name: has // needs for name, (needs, has) in shares.items() if needs is not None}
    for name, count in counts.items():
        if not count:
            needs, has = shares[name]
            raise Invalid(
                f"a worker needs {name}: {needs:,}, and this node has {has:,}",
                remedy=f"change workers.{name} in endpoint.yaml, or choose other nodes",
            )
    return min(counts.values(), default=node.cores)


def states_workers(options: WorkerOptions) -> bool:
    """Return True if the options determine the number of workers."""
    return options != WorkerOptions(pin=options.pin)


def effective(settings: EndpointSettings, options: EndpointOptions) -> EndpointSettings:
    """Return the settings with the values that the options state. Raises Invalid.

    The number of workers is that of this machine; blocks have their own.
    """
    stated = {
        "pass_env": options.pass_env,
        "max_tasks": options.max_tasks,
        "max_memory": options.max_memory,
        "threads": options.threads,
        "grace_s": None if options.grace_ms is None else options.grace_ms / 1000,
        "spool_bytes": options.spool_bytes,
        "debuggable": options.debuggable,
    }
    if states_workers(options.workers) and isinstance(options.provider, LocalOptions):
        stated["workers"] = worker_count(options.workers, resources_here())
    return msgspec.structs.replace(settings, **{name: value for name, value in stated.items() if value is not None})


def python_on_nodes(options: EndpointOptions) -> str:
    """Return the Python of the nodes; if none is stated, the path of the agent's own."""
    return getattr(options.provider, "python", "") or sys.executable


def _memory_limit() -> int:
    """Return the memory limit of this process's control group; huge if it has none."""
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            return int(text)
    return 1 << 62


def _gpus(environ: Mapping[str, str]) -> int:
    """Return the number of GPUs that are visible here."""
    return max(map(len, gpu_devices(environ).values()), default=0)


def pinning(options: WorkerOptions) -> Pinning | None:
    """Return how workers are pinned; None if they are not."""
    if options.pin is None:
        return None
    return Pinning(options.pin, options.cores or 0, options.gpus or 0)
