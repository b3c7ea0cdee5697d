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
from oncue.ids import PREFIX
from oncue.log.base import Record, RecordBatch
from oncue.protocol import cloudevents
from oncue.protocol.codec import build_decoders, decode
from oncue.protocol.records import VERSION, Call, Ended, Event, ResultFrame, Stored
from oncue.rules.operators.records import TaskEnd
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
    closed: list[TaskEnd]  # tasks of rules with limiters, whether or not their outcomes are events


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
        ended = _wanted(batch, lambda call: bool(call.firing_tasks) or wants(call))
        if not ended:
            return
        end = {(batch.topic, batch.partition): batch.next_offset}
        while not await self._view.wait_for(end, VIEW_S):
            _log.warning("rules on outcomes wait for the view, which is behind the log")
        times = dict(zip(batch.offsets, (r.time_ms for r in batch.records), strict=True))
        for start in range(0, len(ended), TASKS):
            found = ended[start : start + TASKS]
            known = await self._view.with_causes(list({e.id for _, _, e in found}))
            yield self._part(batch, times, found, known, wants)

    def _part(
        self,
        batch: RecordBatch,
        times: Mapping[int, int],
        ended: Sequence[tuple[int, Call, Ended]],
        known: Mapping[bytes, tuple[TaskState, Cause]],
        wants: Callable[[Call], bool],
    ) -> OutcomePart:
        offsets: list[int] = []
        records: list[Record] = []
        events: list[Event] = []
        closed: list[TaskEnd] = []
        for offset, call, e in ended:
            time_ms, is_known = times[offset], e.id in known
            if call.firing_tasks and (not is_known or _closes(known[e.id][0], e)):
                closed.append(_task_end(call, e, time_ms))
            if not wants(call):
                continue
            if not is_known:
                _log.warning("the outcome of task %s starts no rule: it is not kept any more", e.id.hex())
                continue
            state, cause = known[e.id]
            if state.call is None or not _closes(state, e):
                continue  # a retry follows, or it came too late
            event = outcome_event(state, cause, self._endpoint_name(state.call.endpoint))
            value, headers = cloudevents.to_record(event)
            offsets.append(offset)
            records.append(Record(value, headers=headers, time_ms=time_ms))
            events.append(event)
        return OutcomePart(
            RecordBatch(batch.topic, batch.partition, offsets, records, batch.next_offset), events, closed
        )


def _closes(state: TaskState, e: Ended) -> bool:
    """Return True if this end of an attempt closed the task."""
    return state.closing is not None and state.closing.same_as(e)


def _task_end(call: Call, e: Ended, time_ms: int) -> TaskEnd:
    index = int.from_bytes(e.id[PREFIX:], "big")
    return TaskEnd(VERSION, call.rule, e.id[:PREFIX], index, call.firing_tasks, e.status, time_ms)


def _wanted(batch: RecordBatch, wants: Callable[[Call], bool]) -> list[tuple[int, Call, Ended]]:
    """Return offset, call and end of the attempts whose calls are wanted."""
    found: list[tuple[int, Call, Ended]] = []
    for offset, record in zip(batch.offsets, batch.records, strict=True):
        try:
            if wants(call := decode(_Head, record.value).call):
                found += [(offset, call, e) for e in decode(ResultFrame, record.value).ended]
        except Undecodable:
            continue  # a fence, or a record of which the view makes a dead letter
    return found


build_decoders(globals())
