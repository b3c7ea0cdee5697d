"""Scaling: which blocks to ask for and which to drain. Pure.

It grows to the demand in one decision, by blocks of no more nodes than are needed: the scheduler
backfills small ones sooner. A task over several nodes needs them in one block. It shrinks by whole
blocks that were idle for `idle_s`. Each limit that holds it back says so in `Plan.why`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from oncue.endpoint.blocks.breaker import DEATHS, Allowance, after_deaths, after_refusals, span
from oncue.endpoint.blocks.gang_packing import Packing, pack_gangs
from oncue.endpoint.blocks.records import BlockHistory, BlockPhase

HOUR_US = 3_600_000_000
WEEK_S = 7 * 86_400.0
#: Before the end of a block's walltime its tasks are told and handed back.
END_MARGIN_S, END_MARGIN_SHARE = 30.0, 0.1


class ScalingLimits(msgspec.Struct, frozen=True):
    """Limits on blocks, from the endpoint's configuration."""

    min: int = 0
    max: int = 1
    initial: int = 0
    nodes: int = 1  # of a block, at most
    workers: int = 1  # a node
    walltime_s: float = 3_600.0
    idle_s: float = 120.0
    node_hours: float = 0.0  # 0: no limit
    node_hours_per_s: float = WEEK_S  # the period that they are counted in
    pending: int = 2  # blocks in the scheduler's queue at once
    submits: int = 6
    submits_per_s: float = 60.0
    failed: int = DEATHS  # blocks that die in ten minutes; then none is asked for


class Demand(msgspec.Struct, frozen=True):
    """Work for the blocks, in workers."""

    waiting: int = 0  # without gangs
    running: int = 0
    gangs: tuple[int, ...] = ()  # nodes of each waiting task that needs several
    walltime_s: float = 0.0  # that one waiting task needs at most, as far as known


class BlockUse(msgspec.Struct, frozen=True):
    """One block that has not ended, as scaling sees it."""

    id: str
    phase: BlockPhase
    nodes: int
    workers: int  # in all
    walltime_s: float
    busy: int = 0  # workers that hold tasks
    here: int = 0  # nodes that may take a task over several of them
    gang_nodes: int = 0  # of those, that such tasks have
    idle_us: int = 0  # how long nothing has needed it
    remaining_s: float | None = None  # of its walltime; None: it does not run yet
    registered: bool = False  # a worker of it has registered


class Plan(msgspec.Struct, frozen=True):
    """Decision: blocks to ask for (nodes of each), blocks to drain, why not more."""

    ask: tuple[int, ...] = ()
    drain: tuple[str, ...] = ()
    why: str = ""
    retry_us: int = 0  # when a limit that holds now ends; 0: not by time alone


def plan(demand: Demand, blocks: Sequence[BlockUse], limits: ScalingLimits, history: BlockHistory, now_us: int) -> Plan:
    """Return what to ask for and what to drain now."""
    active = [b for b in blocks if b.phase is not BlockPhase.DRAINING]
    packing = _packing(active, demand, limits)
    wanted = demand.waiting + demand.running + packing.nodes * limits.workers
    capacity = sum(useful(b, demand) for b in active)
    drain = _surplus(active, wanted, capacity, demand, limits, packing)
    missing = wanted - capacity
    below = limits.min - len(active)
    if missing <= 0 and below <= 0 and not packing.new:
        return Plan(drain=drain)
    if limits.workers <= 0:
        return Plan(drain=drain, why="a node holds 0 workers, so no block can run a task: see `workers`")
    if drain and missing <= 0 and not packing.new:
        return Plan(drain=drain)
    sizes = _sizes(missing, limits, packing.new)
    sizes += [limits.nodes] * max(0, below - len(sizes))
    ask, why, retry_us = sizes, "", 0
    for allowed in _allowances(blocks, sizes, limits, history, now_us):
        if allowed.blocks < len(ask):
            ask, why, retry_us = sizes[: max(0, allowed.blocks)], allowed.why, allowed.retry_us
    return Plan(tuple(ask), drain or _too_small(blocks, limits, packing), why, retry_us)


def end_margin_s(walltime_s: float) -> float:
    """Return how long before the end of its walltime a block's tasks are handed back."""
    return min(END_MARGIN_S, walltime_s * END_MARGIN_SHARE)


def useful(block: BlockUse, demand: Demand) -> int:
    """Return the workers of a block that count against the demand.

    A block that ends before the waiting tasks would have ended takes none of them.
    """
    return block.workers if _remains(block, demand) else block.busy


def _remains(block: BlockUse, demand: Demand) -> bool:
    left = block.remaining_s
    return left is None or left - end_margin_s(block.walltime_s) >= demand.walltime_s


def covers(blocks: Sequence[BlockUse], demand: Demand, limits: ScalingLimits) -> bool:
    """Return True if these blocks have room for all of the demand."""
    packing = _packing(blocks, demand, limits)
    wanted = demand.waiting + demand.running + packing.nodes * limits.workers
    return not packing.new and wanted <= sum(useful(b, demand) for b in blocks)


def _packing(blocks: Sequence[BlockUse], demand: Demand, limits: ScalingLimits) -> Packing:
    """Return which blocks take the gangs that wait, and new ones for the rest."""
    free = (b.here - b.gang_nodes if _remains(b, demand) else 0 for b in blocks)
    return pack_gangs(demand.gangs, free, limits.nodes)


def _sizes(missing: int, limits: ScalingLimits, gangs: Sequence[int]) -> list[int]:
    """Return the nodes of each block, for gangs and for `missing` workers."""
    sizes, nodes = list(gangs), -(-max(0, missing) // limits.workers)
    for i, size in enumerate(sizes):
        beside = min(nodes, limits.nodes - size)
        sizes[i] += beside
        nodes -= beside
    full, rest = divmod(nodes, limits.nodes)
    return sizes + [limits.nodes] * full + ([rest] if rest else [])


def _too_small(blocks: Sequence[BlockUse], limits: ScalingLimits, packing: Packing) -> tuple[str, ...]:
    """Return a block to drain, if a gang waits for a larger one and `max` are there."""
    if not packing.new or len(blocks) < max(limits.max, limits.min):
        return ()
    if any(b.phase is BlockPhase.DRAINING or b.here >= max(packing.new) for b in blocks):
        return ()  # one ends already, or can take the gang some time
    return (min(blocks, key=lambda b: (b.here, b.busy)).id,)


def _surplus(
    active: list[BlockUse], wanted: int, capacity: int, demand: Demand, limits: ScalingLimits, packing: Packing
) -> tuple[str, ...]:
    """Return idle blocks that the rest can do without, and those above `max`."""
    found: list[str] = []
    left = len(active)
    kept = {active[i].id for i in packing.blocks}  # for gangs
    by_idleness = sorted(active, key=lambda b: (b.busy, b.id in kept, -b.idle_us, -b.workers))
    for b in by_idleness:
        above = left > max(limits.max, limits.min)
        idle = b.busy == 0 and b.idle_us >= limits.idle_s * 1e6 and b.id not in kept
        if above or (idle and left > limits.min and capacity - useful(b, demand) >= wanted):
            found.append(b.id)
            left -= 1
            capacity -= useful(b, demand)
    return tuple(found)


def _allowances(
    blocks: Sequence[BlockUse], sizes: list[int], limits: ScalingLimits, history: BlockHistory, now_us: int
) -> list[Allowance]:
    """Return what each limit allows; of equal ones, the first is told."""
    unproven = sum(1 for b in blocks if not b.registered)
    proven = any(b.registered and b.phase is BlockPhase.RUNNING for b in blocks)
    most = max(limits.max, limits.min)
    found = [
        after_deaths(history, unproven, proven, now_us, limits.failed),
        after_refusals(history, now_us),
        Allowance(most - len(blocks), f"blocks.max is {limits.max}"),
        Allowance(
            limits.pending - unproven, f"limits.pending_blocks: {unproven} of {limits.pending} have no worker yet"
        ),
        _submit_rate(limits, history, now_us),
        _node_hours(blocks, sizes, limits, history, now_us),
    ]
    return [allowed for allowed in found if allowed is not None]


def _submit_rate(limits: ScalingLimits, history: BlockHistory, now_us: int) -> Allowance | None:
    if limits.submits <= 0:
        return None
    per_us = int(limits.submits_per_s * 1e6)
    recent = [at for at in history.submits if at > now_us - per_us]
    retry_us = recent[-limits.submits] + per_us if len(recent) >= limits.submits else 0
    return Allowance(
        limits.submits - len(recent), f"limits.submits: {len(recent)} in the last {span(per_us)}", retry_us
    )


def spent_node_s(history: BlockHistory, limits: ScalingLimits, now_us: int) -> float:
    """Return the node-seconds of ended blocks within the limit's period."""
    since = (now_us - int(limits.node_hours_per_s * 1e6)) // HOUR_US
    return sum(s for hour, s in history.spent.items() if hour > since)


def _node_hours(
    blocks: Sequence[BlockUse], sizes: list[int], limits: ScalingLimits, history: BlockHistory, now_us: int
) -> Allowance | None:
    """Return how many blocks fit into the node-hours, if each uses its whole walltime."""
    if limits.node_hours <= 0:
        return None
    taken = spent_node_s(history, limits, now_us) + sum(b.nodes * b.walltime_s for b in blocks)
    left, fit = limits.node_hours * 3_600 - taken, 0
    for nodes in sizes:
        left -= nodes * limits.walltime_s
        if left < 0:
            break
        fit += 1
    why = (
        f"limits.node_hours: {taken / 3_600:.1f} of {limits.node_hours:g} are used or reserved; "
        f"a block needs {sizes[0] * limits.walltime_s / 3_600:.1f}"
        if sizes
        else ""
    )
    return Allowance(fit, why, (now_us // HOUR_US + 1) * HOUR_US)


def with_use(history: BlockHistory, node_s: float, limits: ScalingLimits, now_us: int) -> BlockHistory:
    """Return the history after a block has ended that used so many node-seconds."""
    hour = now_us // HOUR_US
    since = (now_us - int(limits.node_hours_per_s * 1e6)) // HOUR_US
    spent = {h: s for h, s in history.spent.items() if h >= since}
    spent[hour] = spent.get(hour, 0.0) + max(0.0, node_s)
    return msgspec.structs.replace(history, spent=spent)
