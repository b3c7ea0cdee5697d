"""Facts about blocks for users: their state, and why a task waits for one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from oncue.endpoint.blocks.breaker import is_open
from oncue.endpoint.blocks.records import BlockPhase, BlockRecord, BlocksUsage, end_words, ended_well
from oncue.endpoint.blocks.scaling import spent_node_s
from oncue.endpoint.blocks.table import WAITING, BlockTable
from oncue.endpoint.nodes.node_info import NodeInfo
from oncue.protocol.reports import MOST_BLOCKS, BlockReport

SHOWN_ENDED = 5  # the newest
WHY_CHARS = 900


def block_rows(table: BlockTable) -> list[dict[str, Any]]:
    """Return a row of each block: those that live, then the newest that ended."""
    return [_row(table, block) for block in _shown(table)]


def _shown(table: BlockTable) -> list[BlockRecord]:
    ended = [b for b in table.blocks.values() if b.id not in table.live]
    return [table.blocks[i] for i in table.live] + ended[: -SHOWN_ENDED - 1 : -1]


def _row(table: BlockTable, block: BlockRecord) -> dict[str, Any]:
    live = table.live.get(block.id)
    row: dict[str, Any] = {
        "id": block.id,
        "job": block.job,
        "state": block.phase.value,
        "nodes": block.nodes,
        "workers": block.nodes * block.workers,
        "since": _time(_since_us(block)),
        "reason": block.reason if live is None else phase_words(table, block),
    }
    if live is not None:
        row |= {"busy": live.busy, "connected": sorted(live.nodes), "position": live.position}
    else:
        stderr = "" if ended_well(block) else block.stderr
        row |= {"ending": block.ending, "exit": block.exit, "stderr": stderr, "why": end_words(block)}
    return row


def _since_us(block: BlockRecord) -> int:
    return block.ended_us or block.running_us or block.pending_us or block.asked_us


def _time(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1e6).astimezone().isoformat(" ", "seconds")


def phase_words(table: BlockTable, block: BlockRecord) -> str:
    """Return the state of a block that lives, with the scheduler's words."""
    live = table.live[block.id]
    job = f"job {block.job}" if block.job else "a job"
    if block.cancelled:
        return f"{job} is being cancelled"
    if block.phase is BlockPhase.ASKED:
        lost = ", its answer was lost: the scheduler is searched for it" if live.unclear_us else ""
        return f"{job} is being submitted{lost}"
    if block.phase is BlockPhase.PENDING:
        where = f", position {live.position} in the queue" if live.position is not None else ""
        return f"{job}, {live.waits or 'PENDING'}{where}"
    if block.phase is BlockPhase.RUNNING and not block.registered_us:
        return f"{job} runs, its workers start"
    return f"{job} {block.phase.value}" + (f": {block.reason}" if block.reason else "")


def waiting_words(table: BlockTable) -> str:
    """Return why a task waits that no worker has taken; "" if a worker could."""
    queued = [b for b in (table.blocks[i] for i in table.live) if b.phase in WAITING or not b.registered_us]
    if queued:
        return "waiting for a block: " + "; ".join(phase_words(table, b) for b in queued[:3])
    if not table.plan.why:
        return ""
    if not table.live:
        return f"waiting for a block; none is asked for: {table.plan.why}"
    return f"waiting for a worker; no more blocks are asked for: {table.plan.why}"


def usage(
    table: BlockTable, scheduler: str, nodes: Sequence[NodeInfo], waiting: bool, trouble: str, now_us: int
) -> BlocksUsage:
    """Return what the server is told of the blocks and their nodes."""
    words = waiting_words(table) if waiting else ""
    limits = table.limits
    return BlocksUsage(
        scheduler=scheduler,
        workers=sum(n.ready for n in nodes),
        waiting_for=words[:WHY_CHARS],
        trouble=trouble[:WHY_CHARS],
        node_hours=max(0.0, node_hours(table, now_us)),
        blocks=tuple(_report(table, block) for block in _shown(table)[:MOST_BLOCKS]),
        cores=sum(n.use.cores for n in nodes),
        machine_bytes=sum(n.use.memory_bytes for n in nodes),
        used_bytes=sum(n.use.used_bytes for n in nodes),
        nodes=len(nodes),
        node_hours_limit=limits.node_hours,
        node_hours_period_s=int(limits.node_hours_per_s),
        breaker=breaker_words(table)[:WHY_CHARS],
        submits_failed=table.history.submits_failed,
    )


def _report(table: BlockTable, block: BlockRecord) -> BlockReport:
    live = table.live.get(block.id)
    return BlockReport(
        block.id,
        block.job[:300],
        block.phase.value,
        block.nodes,
        block.nodes * block.workers,
        live.busy if live is not None else 0,
        (phase_words(table, block) if live is not None else end_words(block))[:WHY_CHARS],
        since_us=_since_us(block),
        ends_us=block.running_us + int(block.walltime_s * 1e6) if live is not None and block.running_us else 0,
        waits=_reason(live.waits)[:WHY_CHARS] if live is not None and block.phase in WAITING else "",
    )


def _reason(waits: str) -> str:
    """Return the scheduler's reason alone: Resources of "PENDING (Resources; ...)".

    It is a label of metrics: times and numbers would make a series of each.
    """
    found = re.search(r" \(([A-Za-z][A-Za-z_ -]*)", waits)
    return found[1].strip() if found else waits


def breaker_words(table: BlockTable) -> str:
    """Return why asking for blocks has stopped; "" if it has not."""
    if not is_open(table.history, table.limits.failed):
        return ""
    return f"{table.plan.why or table.history.died}; `oncue endpoint reset NAME` tries again now"


def node_hours(table: BlockTable, now_us: int) -> float:
    """Return the node-hours used within the limit's period."""
    running = sum(
        b.nodes * (now_us - b.running_us) / 1e6 for b in (table.blocks[i] for i in table.live) if b.running_us
    )
    return (spent_node_s(table.history, table.limits, now_us) + running) / 3_600
