"""The design's goals on two cores, beside the measured figures.

A goal names its figure by a path of keys in the results. A figure that was not measured is reported
as such, never as met.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Goal(NamedTuple):
    what: str
    path: str  # keys of the results, with dots between
    unit: str
    limit: float
    least: bool = True  # the figure is to be at least the limit; else at most


class Figure(NamedTuple):
    goal: Goal
    value: float | None  # None: not measured
    met: bool


GOALS = (
    Goal("invoke to durable outcome, bursts of 20,000, batched", "system.throughput.burst_per_s", "tasks/s", 50_000),
    Goal("sustained, view caught up", "system.sustained.per_s", "tasks/s", 30_000),
    Goal("CPU a no-op task, all processes", "system.throughput.cpu_us_per_task_sum", "µs", 40, False),
    Goal("one task at a time, whole system, p50", "system.latency.p50_ms", "ms", 1.5, False),
    Goal("file closed until the function starts, p50", "system.file.p50_ms", "ms", 3, False),
    Goal("start until the first outcome", "system.start_s", "s", 2, False),
    Goal("idle memory, server", "system.idle.server.rss_mb", "MB", 110, False),
    Goal("idle memory, agent", "system.idle.agent.rss_mb", "MB", 60, False),
    Goal("idle memory, worker", "system.idle.worker0.rss_mb", "MB", 40, False),
    Goal("idle CPU, server", "system.idle.server.cpu_percent", "% of a core", 1, False),
    Goal("idle CPU, agent", "system.idle.agent.cpu_percent", "% of a core", 1, False),
    Goal("agent with its pool alone", "agent.tasks_per_s", "tasks/s", 100_000),
    Goal("agent with workers on a node, beside its own pool", "nodes.of_in_process", "times", 0.5),
    Goal("agent with its pool alone, p50", "agent.p50_ms", "ms", 0.5, False),
    Goal("one agent, 100,000 workers, 1,000,000 tasks: its memory, late / early", "crowd.agent_growth", "", 1.2, False),
    Goal("events matched, 10 rules", "rules.rules_10_events_per_s", "events/s", 100_000),
    Goal("events matched, 10,000 rules", "rules.rules_10000_events_per_s", "events/s", 50_000),
    Goal("10,000 rules in ten files: deploy", "sizes.deploy_s", "s", 5, False),
    Goal("10,000 rules: restart", "sizes.restart_rules_s", "s", 5, False),
    Goal("10,000 rules, 1,000,000 events: restart", "sizes.restart_events_s", "s", 10, False),
    Goal("longest answer of /health/live during that deploy", "sizes.deploy_health_ms", "ms", 50, False),
    Goal("an array of 200 MB there and back, against a ProcessPool", "large.ratio", "times", 2, False),
    Goal("through Kafka: bursts of 20,000, batched", "kafka.kafka.throughput.burst_per_s", "tasks/s", 20_000),
    Goal("through Kafka: one task at a time, p50", "kafka.kafka.latency.p50_ms", "ms", 5, False),
)

#: Figures without a goal of their own that belong beside them.
ALSO = (
    ("bursts of 20,000, best", "system.throughput.burst_best_per_s", "tasks/s"),
    ("bursts of 20,000, view caught up", "system.throughput.view_caught_up_per_s", "tasks/s"),
    ("one submit a task", "system.singles.per_s", "tasks/s"),
    ("one task at a time, p99", "system.latency.p99_ms", "ms"),
    ("file closed until the function starts, p99", "system.file.p99_ms", "ms"),
    ("memory after the load, server", "system.idle_after.server.rss_mb", "MB"),
    ("memory after the load, agent", "system.idle_after.agent.rss_mb", "MB"),
    ("one agent, 100,000 workers: memory", "crowd.agent_mb.late", "MB"),
    ("one agent, 100,000 workers: tasks that take 2 s", "crowd.tasks_per_s", "tasks/s"),
    ("memory of a server with 1,000,000 tasks queued", "crowd.server_mb.queued", "MB"),
    ("pool alone", "pool.tasks_per_s", "tasks/s"),
    ("pool alone, one task at a time, p50", "pool.p50_ms", "ms"),
    ("events matched, 10,000 rules against 10", "rules.ratio_10000_to_10", "of the rate"),
    ("10,000 rules, 1,000,000 events: restart without the view", "sizes.restart_without_view_s", "s"),
    ("events stored by POST in batches of 2,000", "sizes.stored_events_per_s", "events/s"),
    ("an array there and back", "large.round_trip_s", "s"),
    ("the same by a ProcessPool", "large.pool_round_trip_s", "s"),
    ("the same array in five calls", "large.five_calls_s", "s"),
    ("50 calls with one stored array", "large.fifty_refs_s", "s"),
    ("view, CPU a task in frames of 256", "view.us", "µs"),
    ("log, one durable append, p50", "log.append_awaited_p50_ms", "ms"),
    ("log, the same commit by SQLite alone, p50", "log.raw_commit_p50_ms", "ms"),
    ("log, tasks in frames of 1,024", "log.frames_tasks_per_s", "tasks/s"),
    ("through Kafka: sustained, view caught up", "kafka.kafka.sustained.per_s", "tasks/s"),
    ("through Kafka: file closed until the function starts, p50", "kafka.kafka.file.p50_ms", "ms"),
    ("through Kafka: bursts, against the embedded log in the same run", "kafka.ratio.burst", "of the rate"),
    ("through Kafka: one task at a time, against the embedded log in the same run", "kafka.ratio.latency", "times"),
)


def look_up(results: Mapping[str, Any], path: str) -> float | None:
    found: Any = results
    for key in path.split("."):
        if not isinstance(found, Mapping) or key not in found:
            return None
        found = found[key]
    return float(found) if isinstance(found, (int, float)) and not isinstance(found, bool) else None


def figures(results: Mapping[str, Any]) -> list[Figure]:
    """Return all goals and their figures, in the order of the table."""
    out = []
    for goal in GOALS:
        value = look_up(results, goal.path)
        met = value is not None and (value >= goal.limit if goal.least else value <= goal.limit)
        out.append(Figure(goal, value, met))
    return out
