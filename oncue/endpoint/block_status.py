"""Facts about blocks for users: their state, and why a task waits for one."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from oncue.endpoint.block_records import BlockPhase, BlockRecord, BlocksUsage, end_words, ended_well
from oncue.endpoint.blocks import WAITING, BlockTable
from oncue.endpoint.breaker import is_open
from oncue.endpoint.scaling import spent_node_s
from oncue.protocol.records import MOST_BLOCKS, BlockReport

SHOWN_ENDED = 5  # the newest
WHY_CHARS = 900


def block_rows(table: BlockTable) -> list[dict[str, Any]]:
    """Return a row of each block: those that live, then the newest that ended."""
    ended = [b for b in table.blocks.values() if b.id not in table.live]
    return [_row(table, table.blocks[i]) for i in table.live] + [_row(table, b) for b in ended[: -SHOWN_ENDED - 1 : -1]]


def _row(table: BlockTable, block: BlockRecord) -> dict[str, Any]:
    live = table.live.get(block.id)
    row: dict[str, Any] = {
        "id": block.id,
        "job": block.job,
        "state": block.phase.value,
        "nodes": block.nodes,
        "workers": block.nodes * block.workers,
        "since": _time(block.ended_us or block.running_us or block.pending_us or block.asked_us),
        "reason": block.reason if live is None else phase_words(table, block),
    }
    if live is not None:
        row |= {"busy": live.busy, "connected": sorted(live.nodes), "position": live.position}
    else:
        stderr = "" if ended_well(block) else block.stderr
        row |= {"ending": block.ending, "exit": block.exit, "stderr": stderr, "why": end_words(block)}
    return row


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


def usage(table: BlockTable, scheduler: str, workers: int, waiting: bool, trouble: str, now_us: int) -> BlocksUsage:
    """Return what the server is told of the blocks."""
    rows = [
        BlockReport(
            r["id"], r["job"][:300], r["state"], r["nodes"], r["workers"], r.get("busy", 0),
            (r.get("why") or r["reason"])[:WHY_CHARS],
        )
        for r in block_rows(table)[:MOST_BLOCKS]
    ]  # fmt: skip
    words = waiting_words(table) if waiting else ""
    return BlocksUsage(
        scheduler, workers, words[:WHY_CHARS], trouble[:WHY_CHARS], max(0.0, node_hours(table, now_us)), tuple(rows)
    )


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
