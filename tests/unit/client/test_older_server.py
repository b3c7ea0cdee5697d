"""Requests of many tasks to a server of an older version, which has not these routes."""

from __future__ import annotations

from typing import Any

from oncue.cli.tasks.filters import total_text
from oncue.client.resources import Tasks
from oncue.errors import Invalid, MethodNotAllowed
from oncue.protocol import api as r

TASKS = ["0" * 31 + digit for digit in "12"]


class OlderTasks(Tasks):
    """Tasks of a server that retries one task at a time."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def _post(self, kind: Any, path: str, body: Any, *, repeat: bool = False, headers: str = "") -> Any:
        self.asked.append(path)
        if path == "/v1/tasks/retry":
            raise MethodNotAllowed("POST is not for /v1/tasks/{id}")
        old = path.split("/")[3]
        return r.TaskInfo(id="f" * 32, state="waiting", function="h", name="f", endpoint="e", owner="ann", retry_of=old)


def test_each_task_is_retried_by_itself() -> None:
    tasks = OlderTasks()
    (answer,) = tasks.retry_many(TASKS)
    assert [t.retry_of for t in answer.tasks] == TASKS
    assert tasks.asked == ["/v1/tasks/retry", *(f"/v1/tasks/{task}/retry" for task in TASKS)]


def test_a_list_has_no_total() -> None:
    def count(**filters: object) -> r.TaskCount:
        raise Invalid("'count' is not an id")

    assert total_text(count, {"state": "failed"}) == ""
