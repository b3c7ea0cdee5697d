"""Rows of what tasks have used, by task and by rule and hour, and where they ran.

An attempt counts once, when its end is stored. A rule's node-hours are the time of its attempts,
each times its share of a node (ResultFrame.node_share).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from oncue.protocol.records import Ended, ResultFrame
from oncue.protocol.reports import Started
from oncue.view.bulk_sql import run

HOUR_US = 3_600_000_000
KEPT_HOURS = 35 * 24  # of rules; a limit's period is at most a month
_MOST = 1 << 53

_TASKS = "INSERT OR REPLACE INTO task_usage (id, n, cpu_us, peak_bytes) {values}"
_WORKERS = "INSERT OR REPLACE INTO task_worker (id, n, worker) {values}"
_RULE = (
    "INSERT INTO rule_usage (hour, rule, owner, attempts, worker_us, node_us, cpu_us, peak_bytes)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (hour, rule, owner) DO UPDATE SET"
    " attempts = attempts + excluded.attempts, worker_us = worker_us + excluded.worker_us,"
    " node_us = node_us + excluded.node_us, cpu_us = cpu_us + excluded.cpu_us,"
    " peak_bytes = max(peak_bytes, excluded.peak_bytes)"
)
_SUMS = (
    "SELECT rule, owner, sum(attempts), sum(worker_us), sum(node_us), sum(cpu_us), max(peak_bytes) FROM rule_usage"
    " WHERE hour > ? GROUP BY rule, owner"
)

RuleKey = tuple[str, str]  # rule, owner


class RuleUsage(msgspec.Struct, frozen=True, gc=False):
    """Use of a rule's attempts that have ended."""

    attempts: int = 0
    worker_us: int = 0  # time on workers
    node_us: int = 0  # the same, times the share of a node
    cpu_us: int = 0  # as far as measured
    peak_bytes: int = 0  # of the largest task


UsesByHour = dict[int, dict[RuleKey, RuleUsage]]  # after each of some hours


def store(db: sqlite3.Connection, frame: ResultFrame, ended: Sequence[Ended]) -> None:
    """Store what these attempts of the frame have used. They were not stored before."""
    measured = [(e.id, e.attempt, e.cpu_us, e.peak_bytes) for e in ended if e.cpu_us or e.peak_bytes]
    if measured:
        run(db, _TASKS, measured)
    call = frame.call
    ran = [e for e in ended if e.started_us] if call.rule else ()
    if not ran:
        return
    worker_us = min(_MOST, sum(max(0, e.ended_us - e.started_us) for e in ran))
    node_us = min(_MOST, int(worker_us * frame.node_share))
    cpu_us = min(_MOST, sum(cpu for _, _, cpu, _ in measured))
    peak = max((p for _, _, _, p in measured), default=0)
    hour = ran[-1].ended_us // HOUR_US
    db.execute(_RULE, (hour, call.rule, call.owner, len(ran), worker_us, node_us, cpu_us, peak))


def of_task(db: sqlite3.Connection, task_id: bytes) -> dict[int, tuple[int, int]]:
    """Return attempt -> (CPU time in µs, peak memory in bytes), as far as measured."""
    rows = db.execute("SELECT n, cpu_us, peak_bytes FROM task_usage WHERE id = ?", (task_id,))
    return {n: (cpu_us, peak) for n, cpu_us, peak in rows}


def store_workers(db: sqlite3.Connection, report: Started) -> None:
    """Store on which worker these attempts run."""
    if report.worker:
        run(db, _WORKERS, [(task_id, n, report.worker) for task_id, n, _ in report.tasks])


def workers_of(db: sqlite3.Connection, task_id: bytes) -> dict[int, str]:
    """Return attempt -> its worker, as far as reported."""
    return dict(db.execute("SELECT n, worker FROM task_worker WHERE id = ?", (task_id,)))


def of_rules(db: sqlite3.Connection, after_hour: int) -> dict[RuleKey, RuleUsage]:
    """Return the use of all rules in the hours after this one (unix µs / HOUR_US)."""
    return {
        (rule, owner): RuleUsage(int(n), int(worker), int(node), int(cpu), int(peak))
        for rule, owner, n, worker, node, cpu, peak in db.execute(_SUMS, (after_hour,))
    }


def of_rules_since(db: sqlite3.Connection, hours: Sequence[int]) -> UsesByHour:
    """Return the use of all rules after each of these hours."""
    return {hour: of_rules(db, hour) for hour in set(hours)}


def forget(db: sqlite3.Connection, now_us: int) -> None:
    """Delete the hours that no limit asks for any more."""
    db.execute("DELETE FROM rule_usage WHERE hour < ?", (now_us // HOUR_US - KEPT_HOURS,))
