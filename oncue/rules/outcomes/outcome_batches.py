"""OutcomeBatches: turns batches of `oncue.results` into batches of outcome events.

    oncue.results ─► calls that a rule follows ─► the view has folded them ─► closed by this record?
                                                                       └─► outcome event

Which end of an attempt closes its task, only the fold of all its records says. So the view is
asked, once it has the records too.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import NamedTuple

from oncue.errors import Undecodable
from oncue.log.base import Record, RecordBatch
from oncue.protocol import cloudevents
from oncue.protocol.codec import build_decoders, decode
from oncue.protocol.records import Call, Ended, Event, ResultFrame, Stored
from oncue.rules.outcomes.outcome_event import outcome_event
from oncue.task_lifecycle import TaskState
from oncue.view import View
from oncue.view.chains.causes import Cause

VIEW_S = 30.0  # between two lines in the log while the view is behind
TASKS = 128  # whose arguments and values are in memory at a time
_log = logging.getLogger(__name__)


class OutcomePart(NamedTuple):
    """Part of a batch's outcome events, with a record for each.

    The records are CloudEvents. The batch has the topic and offsets of the results. Several events
    may have one offset.
    """

    batch: RecordBatch
    events: list[Event]


class _Head(Stored, frozen=True):
    """The beginning of a ResultFrame."""

    v: int
    call: Call


class OutcomeBatches:
    """Reads outcomes with the help of the view. `endpoint_name`: id -> name."""

    def __init__(self, view: View, endpoint_name: Callable[[str], str]) -> None:
        self._view, self._endpoint_name = view, endpoint_name

    async def parts(self, batch: RecordBatch, wants: Callable[[Call], bool]) -> AsyncIterator[OutcomePart]:
        """Yield the outcome events of tasks whose calls are wanted, some at a time."""
        ended = _wanted(batch, wants)
        if not ended:
            return
        end = {(batch.topic, batch.partition): batch.next_offset}
        while not await self._view.wait_for(end, VIEW_S):
            _log.warning("rules on outcomes wait for the view, which is behind the log")
        times = dict(zip(batch.offsets, (r.time_ms for r in batch.records), strict=True))
        for start in range(0, len(ended), TASKS):
            found = ended[start : start + TASKS]
            known = await self._view.with_causes(list({e.id for _, e in found}))
            yield self._part(batch, [(offset, times[offset], e) for offset, e in found], known)

    def _part(
        self,
        batch: RecordBatch,
        ended: Sequence[tuple[int, int, Ended]],
        known: Mapping[bytes, tuple[TaskState, Cause]],
    ) -> OutcomePart:
        offsets: list[int] = []
        records: list[Record] = []
        events: list[Event] = []
        for offset, time_ms, e in ended:
            if e.id not in known:
                _log.warning("the outcome of task %s starts no rule: it is not kept any more", e.id.hex())
                continue
            state, cause = known[e.id]
            if state.call is None or state.closing is None or not state.closing.same_as(e):
                continue  # a retry follows, or it came too late
            event = outcome_event(state, cause, self._endpoint_name(state.call.endpoint))
            value, headers = cloudevents.to_record(event)
            offsets.append(offset)
            records.append(Record(value, headers=headers, time_ms=time_ms))
            events.append(event)
        return OutcomePart(RecordBatch(batch.topic, batch.partition, offsets, records, batch.next_offset), events)


def _wanted(batch: RecordBatch, wants: Callable[[Call], bool]) -> list[tuple[int, Ended]]:
    """Return offset and end of the attempts whose calls are wanted."""
    found: list[tuple[int, Ended]] = []
    for offset, record in zip(batch.offsets, batch.records, strict=True):
        try:
            if wants(decode(_Head, record.value).call):
                found += [(offset, e) for e in decode(ResultFrame, record.value).ended]
        except Undecodable:
            continue  # a fence, or a record of which the view makes a dead letter
    return found


build_decoders(globals())
