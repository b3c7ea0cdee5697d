"""Traces: from an event over tasks and their outcomes to all that followed."""

from __future__ import annotations

from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.context import ServerContext
from oncue.dispatcher.services.events import EventService, for_answer
from oncue.dispatcher.services.task_info import task_info
from oncue.errors import NotFound
from oncue.ids import parse_task_id
from oncue.protocol import api as r
from oncue.protocol import cloudevents
from oncue.protocol.event_types import OUTCOME_SOURCE
from oncue.protocol.records import Event
from oncue.task_lifecycle import TaskState
from oncue.view.chains.causes import Cause, Key
from oncue.view.chains.traces import TracedTask

MOST = 1_000  # tasks of one trace


class TraceService:
    """Traces of events and tasks."""

    def __init__(self, context: ServerContext, events: EventService) -> None:
        self._context, self._events = context, events

    async def of_event(self, caller: Caller, offset: int) -> r.Trace:
        """Return the trace of the event at an offset. Raises NotFound."""
        event = (await self._events.stored(offset)).event
        return await self._trace(caller, (event.source, event.id), event, b"")

    async def of_task(self, caller: Caller, task: str) -> r.Trace:
        """Return the trace of the event with which a task's chain began.

        Raises Invalid, NotFound.
        """
        task_id = parse_task_id(task)
        found = await self._found(task_id)
        if found is None:  # perhaps it is newer than the view
            await self._context.barrier(self._context.registry.tasks_topics())
            found = await self._found(task_id)
        if found is None or found[0].call is None or not caller.sees(found[0].call.owner):
            raise NotFound(f"there is no task {task}", remedy="oncue tasks list")
        cause = found[1]
        first = b"" if cause.key is not None else cause.first
        return await self._trace(caller, cause.key or (OUTCOME_SOURCE, first.hex()), cause.event, first)

    async def _found(self, task_id: bytes) -> tuple[TaskState, Cause] | None:
        return (await self._context.view.with_causes([task_id])).get(task_id)

    async def _trace(self, caller: Caller, key: Key, event: Event | None, first: bytes) -> r.Trace:
        found = await self._context.view.trace(key, first, MOST + 1)
        return r.Trace(
            event=for_answer(cloudevents.to_json(event)) if event is not None else None,
            source="" if first else key[0],
            id="" if first else key[1],
            tasks=[self._info(t) for t in found[:MOST] if t.state.call is not None and caller.sees(t.state.call.owner)],
            more=len(found) > MOST,
        )

    def _info(self, traced: TracedTask) -> r.TracedTaskInfo:
        info = task_info(traced.state, self._context.registry.endpoint_name)
        return r.TracedTaskInfo(
            id=info.id,
            after=traced.after.hex(),
            state=info.state,
            rule=info.rule,
            name=info.name,
            endpoint=info.endpoint,
            owner=info.owner,
            attempt=info.attempt,
            accepted_us=info.accepted_us,
            started_us=info.started_us,
            ended_us=info.ended_us,
            why=info.why,
        )
