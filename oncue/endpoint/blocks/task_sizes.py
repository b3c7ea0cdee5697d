"""Room that tasks take on the nodes of blocks, by what they state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from oncue.endpoint.blocks.gang_packing import MOST_GANGS
from oncue.endpoint.blocks.scaling import ScalingLimits
from oncue.endpoint.options.apply import NodeResources
from oncue.endpoint.pool.capacity import NodeCapacity
from oncue.protocol.run_options import Resources, RunOptions, merged
from oncue.quantities import duration_text

UNKNOWN = 1 << 62
REMEMBERED = 10_000  # sizes

Calls = Mapping[tuple[str, RunOptions | None], int]  # tasks by (function, options of their call)


class TaskSizes:
    """Sizes of tasks on an endpoint's blocks.

    `node`: what a node is taken for. `stated`: what its provider's options say of it; 0: nothing,
    so only the node itself can refuse a task. `options_of` returns what a function states.
    """

    def __init__(
        self,
        limits: ScalingLimits,
        node: NodeResources,
        stated: NodeResources,
        options_of: Callable[[str], RunOptions | None],
    ) -> None:
        self._limits, self._options_of = limits, options_of
        self._node = NodeCapacity(limits.workers, node.cores, node.memory_bytes, node.gpus)
        self._stated = NodeCapacity(
            limits.workers, stated.cores or UNKNOWN, stated.memory_bytes or UNKNOWN, stated.gpus or UNKNOWN
        )
        self._sizes: dict[Resources, tuple[int, int]] = {}

    def of(self, function: str, options: RunOptions | None) -> tuple[int, int]:
        """Return (whole nodes, or 0; workers' room on a node) that a task takes."""
        stated = self._options_of(function)  # None also until the function is here
        if stated is None and options is None:
            return 0, 1
        resources = merged(options, stated).resources
        found = self._sizes.get(resources)
        if found is None:
            if len(self._sizes) >= REMEMBERED:
                self._sizes.clear()
            whole = resources.nodes if resources.nodes > 1 else 0
            found = self._sizes[resources] = (whole, self._limits.workers if whole else self._node.width(resources))
        return found

    def share(self, needed: Resources) -> float:
        """Return the part of a node, or the whole nodes, that a task takes while it runs."""
        return float(needed.nodes) if needed.nodes > 1 else self._node.share(needed)

    def demand(self, calls: Calls) -> tuple[int, tuple[int, ...]]:
        """Return (workers' room beyond one a task, nodes of each gang) of waiting tasks.

        The room of a gang is in its nodes alone: it counts as minus one.
        """
        beyond, gangs = 0, Counter[int]()
        for (function, options), count in calls.items():
            nodes, width = self.of(function, options)
            if nodes:
                gangs[nodes] += count
                beyond -= count
            else:
                beyond += (width - 1) * count
        return beyond, tuple(n for n, count in gangs.items() for _ in range(min(count, MOST_GANGS)))

    def misfit(self, needed: Resources) -> str:
        """Return why no block of this endpoint can ever run such a task; "" if one may."""
        limits, nodes = self._limits, max(1, needed.nodes)
        if nodes > limits.nodes:
            has = f"{limits.nodes} at most" if limits.nodes > 1 else "one"
            return (
                f"it needs {nodes} nodes, and a block of this endpoint has {has}: raise blocks.nodes in endpoint.yaml"
            )
        hours = nodes * limits.walltime_s / 3_600
        if limits.node_hours and hours > limits.node_hours:
            walltime = duration_text(int(limits.walltime_s * 1_000))
            return (
                f"it needs a block of {nodes} node{'s' * (nodes > 1)}, which takes {hours:g} node-hours in {walltime}, "
                f"and limits.node_hours is {limits.node_hours:g}: raise it in endpoint.yaml, or lower blocks.walltime"
            )
        why = self._stated.misfit_of_node(needed, "a node")
        if why and needed.ranks_per_node > max(1, needed.cores) and limits.nodes > nodes:
            why += ": state more `nodes`"
        return why
