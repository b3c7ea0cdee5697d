"""Turns new log records into items of live feeds, while a feed is open.

An item is shown to its owner and to admins, an event to every reader (services/events.py). Items of
switches and triggers have no owner; services/deployment/deployed_rules.py knows it. The Notifier
itself publishes closed tasks; AgentReports publishes tasks that start.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from oncue.errors import OncueError
from oncue.log import RecordBatch
from oncue.protocol.codec import decode
from oncue.protocol.records import Call, DeadLetter, Deployment, Registry, RuleSwitch, TaskFrame
from oncue.protocol.topics import DEAD, EVENTS, REGISTRY, TASKS_PREFIX
from oncue.view.record_rows import pack_position

MAX_ITEMS = 1_000  # of one batch
FeedItems = Iterator[tuple[str, dict[str, Any]]]


def feed_items(batch: RecordBatch) -> FeedItems:
    """Yield at most MAX_ITEMS items of a batch. Skips records that cannot be read."""
    if batch.topic == EVENTS:
        places = (pack_position(batch.partition, offset) for offset in islice(batch.offsets, MAX_ITEMS))
        yield from (("event", {"offset": place}) for place in places)
    elif batch.topic.startswith(TASKS_PREFIX) or batch.topic in (DEAD, REGISTRY):
        yield from islice(_each(batch), MAX_ITEMS)


def _each(batch: RecordBatch) -> FeedItems:
    for offset, record in zip(batch.offsets, batch.records, strict=True):
        try:
            if batch.topic == DEAD:
                letter = decode(DeadLetter, record.value)
                yield "dead", {"offset": offset, "stage": letter.stage, "rule": letter.rule, "owner": letter.owner}
            elif batch.topic == REGISTRY:
                if record.value:
                    yield from _registry(decode(Registry, record.value))  # type: ignore[arg-type]
            else:
                yield from _tasks(decode(TaskFrame, record.value))
        except OncueError:
            continue


def _registry(entry: Registry) -> FeedItems:
    if isinstance(entry, Deployment):
        item = {"label": entry.label, "version": entry.version, "removed": entry.removed, "owner": entry.owner}
        yield "rule", item
    elif isinstance(entry, RuleSwitch):
        yield "rule", {"name": entry.rule, "enabled": entry.enabled, "by": entry.by, "why": entry.why}


def _tasks(frame: TaskFrame) -> FeedItems:
    shared = {"state": "waiting", **about(frame.call), "accepted_us": frame.accepted_us}
    for task in frame.tasks:
        yield "task", {"id": task.id.hex(), "event": list(task.event) if task.event else None, **shared}


def about(call: Call) -> dict[str, str]:
    """Return the fields of a call that every item about its tasks has."""
    return {
        "name": call.name,
        "function": call.function,
        "endpoint": call.endpoint,
        "owner": call.owner,
        "rule": call.rule,
    }
