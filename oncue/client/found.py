"""Handles of tasks by their ids alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from oncue.client.batch import Batch, Options
from oncue.client.task import Task
from oncue.protocol.api import TaskInfo

if TYPE_CHECKING:
    from oncue.client.client import Client

R = TypeVar("R")


class FoundTask(Task[R]):
    """A task that this client did not submit: its outcome is asked for.

    A task that the server does not know (or that is not yours) is waited for only a moment: it may have been submitted by
    another process just now. Then result() and all that waits raise NotFound."""

    __slots__ = ("_given", "_info", "_task")

    def __init__(self, client: Client, task_id: bytes) -> None:
        self._given, self._task = client, task_id
        self._info: TaskInfo | None = None
        super().__init__(_Single(client, task_id), 0)

    def _known(self) -> TaskInfo:
        if self._info is None:
            self._info = self.info()
        return self._info

    @property
    def endpoint(self) -> str:
        return self._known().endpoint

    @property
    def name(self) -> str:
        return self._info.name if self._info else ""

    def _trusted(self) -> bool:
        found = self._known()
        return self._client.trusts(found.endpoint, found.endpoint_id)


class _Single(Batch):
    """A batch of one, of an id that is known; its outcome comes by no stream (pid 0 is no process of ours). `accepted` is
    what the server was heard to say, as with any batch."""

    __slots__ = ()

    def __init__(self, client: Client, task_id: bytes) -> None:
        super().__init__(client, "", "", "", Options())
        self.first, self.prefix = int.from_bytes(task_id, "big"), task_id[:14]
        self.ended, self.sealed, self.pid = [None], True, 0
