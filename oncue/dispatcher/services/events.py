"""Accepts, lists and streams events.

Events belong to the facility, not to their sender: any event may start anybody's rule, so every
reader sees all events. The tasks that an event caused are shown to their owners only.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, cast

import msgspec

from oncue.clocks.process import now_us
from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.context import ServerContext, position_text
from oncue.dispatcher.off_loop import LARGE_BYTES, MANY, off_loop_if
from oncue.dispatcher.services.list_filters import COUNTED, visible
from oncue.errors import Invalid, NotFound, TooLarge
from oncue.log import Position, Record
from oncue.protocol import api as r
from oncue.protocol import cloudevents
from oncue.protocol.event_types import OUTCOME_SOURCE
from oncue.protocol.records import STORED_EVENT_BYTES, Event
from oncue.protocol.topics import EVENTS
from oncue.view import EventFilter, EventRow

#: Kinds of live items that hold no private data: every reader sees them.
_PUBLIC = frozenset(("", "event", "skipped"))


def _owner_in(kind: str, item: Mapping[str, Any]) -> str:
    return str(item.get("owner", ""))


class EventService:
    """Events of the topic oncue.events."""

    def __init__(self, context: ServerContext, owner_of: Callable[[str, Mapping[str, Any]], str] = _owner_in) -> None:
        """`owner_of`: the owner of a live item of a kind; "": only admins see it."""
        self._context, self._owner_of = context, owner_of

    async def emit(self, caller: Caller, events: Sequence[Event]) -> r.Emitted:
        """Append a caller's events.

        Extension attributes that start with "oncue" are reserved and removed. Raises Invalid,
        TooLarge, NotReady, DiskFull.
        """
        clean = await off_loop_if(len(events) > MANY, _all_clean, events)
        positions = await self.append(clean)
        only = clean[0].id if len(clean) == 1 else ""
        return r.Emitted(count=len(clean), id=only, position=position_text(positions))

    async def append(self, events: Sequence[Event]) -> list[Position]:
        """Append events of triggers or callers; durable on return.

        Raises Invalid, TooLarge, NotReady, DiskFull.
        """
        self._context.check_accepting()
        if not events:
            return []
        binary = self._context.settings.events_mode == "binary"
        records = await off_loop_if(len(events) > MANY, _records, events, binary)
        positions = await self._context.log.append(EVENTS, records)
        self._context.metrics.events(len(records))
        return positions

    async def page(self, caller: Caller, filters: EventFilter) -> r.Page:
        """Return a page of events, newest first. `filters.endpoint`: a name or an id.

        With `next` there may be more, even if the page is not full. Raises Invalid, NotFound.
        """
        rows, following = await self._context.view.events(visible(caller, filters, self._context.registry))
        return r.Page(items=[await self._event_info(caller, row) for row in rows], next=following)

    async def count(self, caller: Caller, filters: EventFilter) -> r.EventCount:
        """Count the events of a list, up to COUNTED. Raises Invalid, NotFound."""
        filters = visible(caller, filters, self._context.registry)
        found, all_ = await self._context.view.count_events(filters, COUNTED)
        return r.EventCount(count=found, more=not all_)

    async def get(self, caller: Caller, offset: int) -> r.EventInfo:
        """Return the event at an offset, and what it caused. Raises NotFound."""
        return await self._event_info(caller, await self.stored(offset))

    async def stored(self, offset: int) -> EventRow:
        """Return the event at an offset, even if the view lags. Raises NotFound."""
        found = await self._context.view.event(offset)
        if found is None:
            await self._context.barrier((EVENTS,))
            found = await self._context.view.event(offset)
        if found is None:
            raise NotFound(f"there is no event at offset {offset}", remedy="oncue events list shows what there is")
        return found

    async def _event_info(self, caller: Caller, row: EventRow) -> r.EventInfo:
        caused = await self._context.view.fired(row.event.source, row.event.id)
        fired = [(call.rule, task_id) for call, task_id in caused if caller.sees(call.owner)]
        return r.EventInfo(
            offset=row.offset,
            event=for_answer(cloudevents.to_json(row.event)),
            at_us=row.at_us,
            fired=sorted({rule for rule, _ in fired}),
            tasks=[task_id.hex() for _, task_id in fired],
        )

    def live(self, caller: Caller, kinds: frozenset[str]) -> AsyncIterator[tuple[str, Any]]:
        """Return (kind, item) of these kinds as they happen.

        A caller sees events, and what is theirs.
        """

        def sees(kind: str, item: Any) -> bool:
            return kind in _PUBLIC or caller.sees(self._owner_of(kind, item))

        return self._context.notifier.live(kinds, sees)


def for_answer(event: bytes) -> dict[str, Any]:
    """Return an event for an answer in JSON.

    A large one stays encoded: to decode it, only to encode it again, would hold the loop.
    """
    return cast(dict[str, Any], msgspec.Raw(event)) if len(event) > LARGE_BYTES else dict(json.loads(event))


def _records(events: Sequence[Event], binary: bool) -> list[Record]:
    """Return the records of events. Raises TooLarge, Invalid."""
    stamp = now_us() // 1000
    records = []
    for event in events:
        if event.source == OUTCOME_SOURCE:  # a trace would show what it causes as caused by a task
            raise Invalid(
                f"source: {OUTCOME_SOURCE} is that of outcomes, which oncue itself tells",
                remedy="name what tells the event",
            )
        value, headers = cloudevents.to_record(event, binary=binary)
        size = len(value) + (sum(len(content) for _, content in headers) if binary else 0)
        if size > STORED_EVENT_BYTES:
            raise TooLarge(
                f"event {event.id!r} has {size:,} bytes; at most {STORED_EVENT_BYTES:,} are stored",
                remedy="put large data somewhere and name it in the event (dataref)",
                limit_bytes=STORED_EVENT_BYTES,
            )
        records.append(Record(value, key=event.source.encode(), headers=headers, time_ms=stamp))
    return records


def _all_clean(events: Sequence[Event]) -> list[Event]:
    return [_without_reserved(event) for event in events]


def _without_reserved(event: Event) -> Event:
    if not any(name.startswith("oncue") for name in event.extensions):
        return event
    kept = {k: v for k, v in event.extensions.items() if not k.startswith("oncue")}
    return msgspec.structs.replace(event, extensions=kept)
