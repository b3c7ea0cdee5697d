"""Topics that a server needs, with partitions and retention."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from oncue.config import Settings
from oncue.dispatcher.trigger_state import PARTITIONS
from oncue.errors import Invalid
from oncue.log import Log, Topic
from oncue.protocol.topics import (
    CONTROL,
    DEAD,
    EVENTS,
    FILES,
    REGISTRY,
    REPORTS,
    RESULTS,
    SHARED_CONTROL_PARTITIONS,
    SHARED_TASKS,
    TASKS_PREFIX,
    TaskTopics,
)
from oncue.rules.stateful.topics import ensure_matches

DAY_MS = 86_400_000
#: Brokers delete results by themselves, while their tasks are truncated up to 1.25 days later
#: (housekeeper.py). A view that is built in between would take such tasks for open ones.
LATER_MS = 2 * DAY_MS


def server_topics(s: Settings) -> dict[str, Topic]:
    """Return the topics that every server needs, but for the tasks of endpoints."""
    results = Topic(retention_ms=int(s.results_retention_days * DAY_MS), retention_bytes=s.results_retention_bytes)
    by_brokers = msgspec.structs.replace(results, retention_ms=results.retention_ms + LATER_MS)
    shared = {FILES: Topic(partitions=PARTITIONS, compact=True)} if s.shared_log else {}
    return shared | {
        EVENTS: Topic(partitions=s.events_partitions, retention_ms=int(s.events_retention_days * DAY_MS)),
        RESULTS: by_brokers if s.shared_log else results,
        CONTROL: msgspec.structs.replace(results, partitions=SHARED_CONTROL_PARTITIONS if s.shared_log else 1),
        REPORTS: Topic(retention_ms=int(s.reports_retention_days * DAY_MS)),
        REGISTRY: Topic(compact=True),
        DEAD: Topic(retention_ms=int(s.events_retention_days * DAY_MS)),
    }


async def ensure_topics(log: Log, settings: Settings) -> None:
    """Create the topics that are missing.

    Raises Invalid if the log was begun with another setting of `task_topics`.
    """
    task_topics = TaskTopics(settings.task_topics)
    check_task_topics(await log.topics(), task_topics)
    await log.ensure({**server_topics(settings), **dict.fromkeys(task_topics.names(), Topic())})
    await ensure_matches(log, settings)


def check_task_topics(names: Iterable[str], wanted: TaskTopics) -> None:
    """Raise Invalid if the log's topics have another setting of `task_topics`.

    The tasks of an endpoint are ordered within one topic. With another setting, open tasks would be
    in two topics.
    """
    found = [n.removeprefix(TASKS_PREFIX) for n in names if n.startswith(TASKS_PREFIX)]
    shared = max((_number(n) + 1 for n in found), default=0)
    if not found or shared == wanted.shared:
        return
    began = f"{shared} topics that all endpoints share" if shared else "a topic for each endpoint"
    raise Invalid(
        f"the setting task_topics is {wanted.shared}, and this log was begun with {began}",
        remedy=f"set task_topics = {shared}, for each server and stream worker; or begin another log (?prefix=...)",
    )


def _number(name: str) -> int:
    text = name.removeprefix(SHARED_TASKS.removeprefix(TASKS_PREFIX))
    return int(text) if text != name and text.isdecimal() else -1
