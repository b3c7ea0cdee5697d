"""Capacity of a pool's node for tasks that state resources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import psutil

from oncue.endpoint.pool.limits import cores
from oncue.endpoint.pool.pinning import GPU_VARIABLES, gpu_devices, listed, union
from oncue.endpoint.worker.affinity import CORES
from oncue.protocol.run_options import Resources
from oncue.quantities import size_text

NOTHING = Resources()


class NodeCapacity(msgspec.Struct, frozen=True):
    """Capacity of a pool's node, which its workers share equally."""

    workers: int
    cores: int
    memory_bytes: int
    gpus: int

    def width(self, needed: Resources) -> int:
        """Return how many workers' room a task needs."""
        if needed == NOTHING:
            return 1
        cores = max(needed.cores, needed.ranks_per_node)
        # A worker has a core at least, also where there are more workers than cores.
        shares = (
            (cores, max(self.cores, self.workers)),
            (needed.memory_bytes, self.memory_bytes),
            (needed.gpus, self.gpus),
        )
        return max([1, *(_workers(share, whole, self.workers) for share, whole in shares if share)])

    def share(self, needed: Resources) -> float:
        """Return the share of the node that a task takes while it runs."""
        return self.width(needed) / max(1, self.workers)

    def misfit(self, needed: Resources, nodes: int = 1) -> str:
        """Return why a task that has so many nodes can never run here; "" if it can."""
        if needed == NOTHING:
            return ""
        if needed.nodes > nodes:
            return f"it needs {needed.nodes} nodes, and the workers of this endpoint are on one"
        return self.misfit_of_node(needed)

    def misfit_of_node(self, needed: Resources, whose: str = "this endpoint") -> str:
        """Return why the task's part on one node can never run there; "" if it can."""
        ranks = needed.ranks_per_node
        cores, what = max(needed.cores, ranks), "ranks" if ranks > needed.cores else "cores"
        on_each = " on each node" if needed.nodes > 1 else ""
        if cores > max(self.cores, self.workers):
            has = f"{whose}'s workers have {max(self.cores, self.workers)} in all"
            return f"it needs {cores} {what}{on_each}, and {has}"
        if needed.gpus > self.gpus:
            return f"it needs {needed.gpus} GPUs{on_each}, and {whose} has {self.gpus or 'none'}"
        if needed.memory_bytes > self.memory_bytes:
            has = f"{whose} has {size_text(self.memory_bytes)}"
            return f"it needs {size_text(needed.memory_bytes)} of memory{on_each}, and {has}"
        return ""


def _workers(share: int, whole: int, workers: int) -> int:
    """Return how many of the workers have this share of the whole."""
    return min(workers, -(-share * workers // whole)) if whole else workers


def capacity_here(workers: int, environ: Mapping[str, str], own: Sequence[Mapping[str, str]] = ()) -> NodeCapacity:
    """Return the capacity of this machine for a pool's workers.

    `own`: the variables of each, if they are pinned; they have no more than these name.
    """
    pinned = {name: listed(value) for name, value in union(own).items()}
    gpus = {name: pinned[name] for name in GPU_VARIABLES if name in pinned} or gpu_devices(environ)
    return NodeCapacity(
        workers,
        len(pinned.get(CORES, ())) or cores(),
        psutil.virtual_memory().total,
        max(map(len, gpus.values()), default=0),
    )
