"""Limits of scaling and sizes of jobs, from the options in `endpoint.yaml`."""

from __future__ import annotations

from oncue.endpoint.blocks.scaling import WEEK_S, ScalingLimits
from oncue.endpoint.options.apply import NodeResources, resources_here, worker_count
from oncue.endpoint.options.options import EndpointOptions

PLENTY = 1 << 62
MOST_WORKERS = 200_000  # an agent may hold a million tasks


def scaling_limits(options: EndpointOptions) -> ScalingLimits:
    """Return the limits that these options state. Raises Invalid if no worker fits."""
    blocks, limits = options.blocks, options.limits
    hours, submits = limits.node_hours, limits.submits
    return ScalingLimits(
        min=blocks.min,
        max=blocks.max,
        initial=blocks.initial,
        nodes=blocks.nodes,
        workers=worker_count(options.workers, node_resources(options)),
        walltime_s=blocks.walltime_ms / 1000,
        idle_s=blocks.idle_ms / 1000,
        node_hours=hours.amount if hours is not None else 0.0,
        node_hours_per_s=hours.per_ms / 1000 if hours is not None else WEEK_S,
        pending=limits.pending_blocks,
        submits=int(submits.amount),
        submits_per_s=submits.per_ms / 1000,
        failed=limits.failed_blocks,
    )


def most_workers(options: EndpointOptions) -> int:
    """Return how many workers the blocks may hold. Raises Invalid if no worker fits.

    The server sends so many tasks and some more, so the agent sees the demand for blocks.
    """
    limits = scaling_limits(options)
    return min(MOST_WORKERS, limits.max * limits.nodes * limits.workers)


def node_resources(options: EndpointOptions) -> NodeResources:
    """Return what the provider's options say of a node; else what this machine has.

    The number of workers that follows is a guess until a node has joined.
    """
    stated, here = stated_resources(options), resources_here()
    gpus = stated.gpus or options.workers.gpus or here.gpus
    return NodeResources(stated.cores or here.cores, stated.memory_bytes or PLENTY, gpus)


def stated_resources(options: EndpointOptions) -> NodeResources:
    """Return what the provider's options say of a node; 0: nothing."""
    names = ("cores_per_node", "memory_per_node", "gpus_per_node")
    return NodeResources(*[getattr(options.provider, name, 0) for name in names])
