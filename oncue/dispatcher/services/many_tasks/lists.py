"""Lists, counts and finds tasks; selects those that a retry or cancel is for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import msgspec

from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.context import ServerContext
from oncue.dispatcher.off_loop import LARGE_BYTES, off_loop_if
from oncue.dispatcher.services.cancellation import CancellationService
from oncue.dispatcher.services.list_filters import COUNTED, visible
from oncue.dispatcher.services.task_info import task_info
from oncue.dispatcher.services.tasks import TaskService
from oncue.errors import Invalid
from oncue.protocol import api as r
from oncue.task_lifecycle import TaskState
from oncue.view import TaskFilter
from oncue.view.lists import PAGE_BYTES

_AT_ONCE = 8  # tasks with all that they have


class TaskListService:
    """Lists of tasks that the caller may see."""

    def __init__(self, context: ServerContext, tasks: TaskService, cancellation: CancellationService) -> None:
        self._context, self._tasks, self._cancellation = context, tasks, cancellation

    async def page(self, caller: Caller, filters: TaskFilter) -> r.Page:
        """Return a page of tasks, newest first. `filters.endpoint`: a name or an id."""
        states, cursor = await self._context.view.tasks(visible(caller, filters, self._context.registry))
        return r.Page(items=await self._infos(states), next=cursor)

    async def find(self, caller: Caller, text: str, limit: int) -> r.Page:
        """Return the tasks that a short form of an id means, newest first. Raises Invalid.

        They are up to `limit`, and about PAGE_BYTES.
        """
        view = self._context.view
        found = await view.matching_ids(text, caller.only, limit)
        if not found:  # perhaps it is newer than the view
            await self._context.barrier(self._tasks.topics())
            found = await view.matching_ids(text, caller.only, limit)
        states: list[TaskState] = []
        for start in range(0, len(found), _AT_ONCE):
            part = found[start : start + _AT_ONCE]
            known = await view.tasks_of(part)
            states += [known[i] for i in part if i in known]
            if sum(map(_size, states)) > PAGE_BYTES:
                break
        return r.Page(items=await self._infos(states))

    async def count(self, caller: Caller, filters: TaskFilter) -> r.TaskCount:
        """Count the tasks of a list, up to COUNTED."""
        filters = visible(caller, filters, self._context.registry)
        found = await self._context.view.count_tasks(filters, COUNTED + 1)
        return r.TaskCount(count=min(found, COUNTED), more=found > COUNTED)

    async def cancel_page(self, caller: Caller, request: r.CancelRequest, bearer: str) -> tuple[list[str], str | None]:
        """Cancel a page of open tasks of a filter; return (ids, next cursor)."""
        if request.filter is None or request.tasks:
            raise both_or_none()
        states, cursor = await self.select(caller, request.filter, "open", request.cursor, request.limit)
        wanted = [s for s in states if not s.state.closed]
        ids = await self._cancellation.cancel_states(caller, wanted, waiting=request.waiting, bearer=bearer)
        return ids, cursor

    async def select(
        self,
        caller: Caller,
        selection: r.TaskSelection,
        state: str,
        cursor: str,
        limit: int,
        *,
        not_retried: bool = False,
    ) -> tuple[list[TaskState], str | None]:
        """Return a page of the tasks that a request is for, and the next cursor.

        Its first page has all that was accepted before. `state`: that of a filter without one.
        """
        if not cursor:
            await self._context.barrier(self._tasks.topics())
        filters = TaskFilter(
            state=selection.state or state,
            endpoint=selection.endpoint,
            function=selection.function,
            rule=selection.rule,
            owner=selection.owner,
            since_us=selection.since_us,
            until_us=selection.until_us,
            not_retried=not_retried,
            cursor=cursor,
            limit=limit,
        )
        return await self._context.view.tasks(visible(caller, filters, self._context.registry))

    async def _infos(self, states: Sequence[TaskState]) -> list[r.TaskInfo]:
        ids = [s.id for s in states]
        shorts, retries = await self._context.view.short_ids(ids), await self._context.view.retries(ids)

        # Values that users chose are converted beside the loop.
        name = self._context.registry.endpoint_name
        shown = [partial(task_info, state, name, *self._tasks.why(state)) for state in states]
        large = sum(map(_size, states)) > LARGE_BYTES
        infos = await off_loop_if(large, lambda: [show() for show in shown])
        return [
            msgspec.structs.replace(info, short=short, replaced_by=retries.get(i, b"").hex())
            for info, short, i in zip(infos, shorts, ids, strict=True)
        ]


def both_or_none() -> Invalid:
    """Return the error for a request with both `tasks` and `filter`, or none of them."""
    return Invalid("the body: give either `tasks` or `filter`", remedy="`tasks` names ids, `filter` what they share")


def _size(state: TaskState) -> int:
    return len(state.args) + sum(len(a.value) + len(a.output) for a in state.attempts)
