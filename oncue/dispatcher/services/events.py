"""Events taken in and looked up. They are the facility's, not their sender's: anybody's rule may be made to run by any
event, so anybody who may read sees them all. What an event made run is shown to whom that belongs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.context import ServerContext, position_text
from oncue.errors import NotFound, TooLarge
from oncue.ids import now_us
from oncue.log import Position, Record
from oncue.protocol import api as r
from oncue.protocol import cloudevents
from oncue.protocol.records import EVENT_BYTES, Event
from oncue.protocol.topics import EVENTS
from oncue.view import EventRow


class EventDesk(ServerContext):
    async def emit(self, who: Caller, events: Sequence[Event]) -> r.Emitted:
        """A caller's own events; attributes that start with "oncue" are ours and are taken out."""
        clean = [_without_ours(e) for e in events]
        positions = await self.append_events(clean)
        only = clean[0].id if len(clean) == 1 else ""
        return r.Emitted(count=len(clean), id=only, position=position_text(positions))

    async def append_events(self, events: Sequence[Event]) -> list[Position]:
        """Durable when this returns: for triggers."""
        self.accepting()
        if not events:
            return []
        stamp, binary = now_us() // 1000, self.settings.events_mode == "binary"
        records = []
        for event in events:
            value, headers = cloudevents.to_record(event, binary=binary)
            size = len(value) + (sum(len(content) for _, content in headers) if binary else 0)
            if size > EVENT_BYTES:
                raise TooLarge(
                    f"event {event.id!r} has {size:,} bytes; at most {EVENT_BYTES:,} are taken",
                    remedy="put large data somewhere and name it in the event (dataref)",
                    limit_bytes=EVENT_BYTES,
                )
            records.append(Record(value, key=event.source.encode(), headers=headers, time_ms=stamp))
        positions = await self.log.append(EVENTS, records)
        self.metrics.events(len(records))
        return positions

    async def emit_from_trigger(self, events: Sequence[Event]) -> None:
        await self.append_events(events)

    async def events(
        self, who: Caller, *, type: str = "", source: str = "", cursor: str = "", limit: int = 50
    ) -> r.Page:
        rows, following = await self.view.events(type=type, source=source, cursor=cursor, limit=limit)
        return r.Page(items=[await self._event_info(who, row) for row in rows], next=following)

    async def event(self, who: Caller, offset: int) -> r.EventInfo:
        found = await self.view.event(offset)
        if found is None:
            await self.barrier((EVENTS,))
            found = await self.view.event(offset)
        if found is None:
            raise NotFound(f"there is no event at offset {offset}", remedy="oncue events list shows what there is")
        return await self._event_info(who, found)

    async def _event_info(self, who: Caller, row: EventRow) -> r.EventInfo:
        caused = await self.view.fired(row.event.source, row.event.id)
        fired = [(call.rule, task_id) for call, task_id in caused if who.sees(call.owner)]
        return r.EventInfo(
            offset=row.offset,
            event=json.loads(cloudevents.to_json(row.event)),
            at_us=row.at_us,
            fired=sorted({rule for rule, _ in fired}),
            tasks=[task_id.hex() for _, task_id in fired],
        )

    # ------------------------------------------------------------ live

    async def live(self, who: Caller, kinds: frozenset[str]) -> AsyncIterator[tuple[str, Any]]:
        """What has no owner (an event's offset, a sign of life) is for all."""
        async for kind, item in self.board.live(kinds):
            if not isinstance(item, dict) or who.sees(item.get("owner", who.subject)):
                yield kind, item


def _without_ours(event: Event) -> Event:
    if not any(name.startswith("oncue") for name in event.extensions):
        return event
    kept = {k: v for k, v in event.extensions.items() if not k.startswith("oncue")}
    return msgspec.structs.replace(event, extensions=kept)
