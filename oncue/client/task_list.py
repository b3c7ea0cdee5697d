"""TaskList: the tasks that map() returns."""

from __future__ import annotations

from typing import TypeVar

from oncue.client.display import notebook
from oncue.client.task import Task

R = TypeVar("R")


class TaskList(list[Task[R]]):
    """A list of tasks. A notebook shows it as a table."""

    def _repr_html_(self) -> str:
        return notebook.tasks_table(self)
