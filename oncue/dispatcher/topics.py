"""Whether the topics that are there are those that the setting `task_topics` means.

The order of an endpoint's tasks is that of one topic: with another setting, open tasks would be in two.
"""

from __future__ import annotations

from collections.abc import Iterable

from oncue.errors import Invalid
from oncue.protocol.topics import SHARED_TASKS, TASKS_PREFIX, TaskTopics


def check_task_topics(names: Iterable[str], wanted: TaskTopics) -> None:
    """`names`: of the log's topics. Raises Invalid."""
    there = [n.removeprefix(TASKS_PREFIX) for n in names if n.startswith(TASKS_PREFIX)]
    shared = max((_number(n) + 1 for n in there), default=0)
    if not there or shared == wanted.shared:
        return
    began = f"{shared} topics that all endpoints share" if shared else "a topic for each endpoint"
    raise Invalid(
        f"the setting task_topics is {wanted.shared}, and this log was begun with {began}",
        remedy=f"set task_topics = {shared}, for each server and stream worker; or begin another log (?prefix=...)",
    )


def _number(name: str) -> int:
    text = name.removeprefix(SHARED_TASKS.removeprefix(TASKS_PREFIX))
    return int(text) if text != name and text.isdecimal() else -1
