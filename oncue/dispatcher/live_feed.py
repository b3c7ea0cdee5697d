"""What people who look at a live feed are shown of fresh records: (kind, item). Only asked for while somebody looks.

An item with an owner is shown to that owner and to administrators, others to all who may read: they hold no one's data.
Closings are told by the board itself, and starts by whom the agents' reports come to.
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

MOST = 1_000  # of one batch
News = Iterator[tuple[str, dict[str, Any]]]


def of(batch: RecordBatch) -> News:
    """At most MOST of the batch. A record that cannot be read is no news: its reader buries it."""
    if batch.topic == EVENTS:
        yield from (("event", {"offset": offset}) for offset in islice(batch.offsets, MOST))
    elif batch.topic.startswith(TASKS_PREFIX) or batch.topic in (DEAD, REGISTRY):
        yield from islice(_each(batch), MOST)


def _each(batch: RecordBatch) -> News:
    for offset, record in zip(batch.offsets, batch.records, strict=True):
        try:
            if batch.topic == DEAD:
                letter = decode(DeadLetter, record.value)
                yield "dead", {"offset": offset, "stage": letter.stage, "rule": letter.rule}
            elif batch.topic == REGISTRY:
                if record.value:
                    yield from _registry(decode(Registry, record.value))  # type: ignore[arg-type]
            else:
                yield from _tasks(decode(TaskFrame, record.value))
        except OncueError:
            continue


def _registry(entry: Registry) -> News:
    if isinstance(entry, Deployment):
        item = {"label": entry.label, "version": entry.version, "removed": entry.removed, "owner": entry.owner}
        yield "rule", item
    elif isinstance(entry, RuleSwitch):
        yield "rule", {"name": entry.rule, "enabled": entry.enabled, "by": entry.by, "why": entry.why}


def _tasks(frame: TaskFrame) -> News:
    shared = {"state": "waiting", **about(frame.call), "accepted_us": frame.accepted_us}
    for task in frame.tasks:
        yield "task", {"id": task.id.hex(), "event": list(task.event) if task.event else None, **shared}


def about(call: Call) -> dict[str, str]:
    """What each item of a task says of its call."""
    return {
        "name": call.name,
        "function": call.function,
        "endpoint": call.endpoint,
        "owner": call.owner,
        "rule": call.rule,
    }
