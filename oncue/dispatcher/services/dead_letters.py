"""Lists, retries and dismisses dead letters.

A dead letter of a rule belongs to the rule's owner. Others (records that could not be read) are for
admins. A Resolution is a record of oncue.dead behind the letter. No letter is removed, so a view
rebuilt from the log gives the same answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal

from oncue.clocks.process import now_us
from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.context import ServerContext, position_text
from oncue.errors import Conflict, Invalid, NotFound
from oncue.ids import parse_task_id
from oncue.log import Append, Record
from oncue.protocol import api as r
from oncue.protocol import cloudevents
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION, DeadLetter, Event, Resolution, ResultFrame
from oncue.protocol.topics import DEAD, EVENTS, MATCHES, REGISTRY, RESULTS
from oncue.view import DeadRow
from oncue.view.record_rows import pack_position, unpack_position
from oncue.view.rows import ended_of

GROUP = "oncue.dead.retries"  # commits appends only, no offsets
REASON_CHARS = 1_000
PAGE = 1_000
RECORD_LETTERS = 5_000  # in one record


class DeadLetterService:
    """Dead letters of the topic oncue.dead."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    async def page(self, caller: Caller, cursor: str, limit: int, settled: bool = False) -> r.Page:
        """Return a page of the open dead letters, or of all with `settled`."""
        rows, following = await self._context.view.dead(cursor, limit, caller.only, settled)
        return r.Page(items=[_info(row) for row in rows], next=following)

    async def get(self, caller: Caller, letter: int) -> r.DeadInfo:
        """Return one dead letter. Raises NotFound."""
        return _info(await self._letter(caller, letter))

    async def _letter(self, caller: Caller, letter: int) -> DeadRow:
        found = await self._context.view.dead_letter(letter)
        if found is None:  # perhaps it is newer than the view
            await self._context.barrier((DEAD,))
            found = await self._context.view.dead_letter(letter)
        if found is None or not caller.sees(found.letter.owner):
            raise NotFound(f"there is no dead letter {letter}", remedy="oncue dead list --all shows what there is")
        return found

    async def retry(self, caller: Caller, letter: int) -> None:
        """Append the record to its topic again and resolve the letter, in one commit.

        Raises Conflict if the record was not kept, NotFound.
        """
        self._context.check_accepting()
        found = (await self._letter(caller, letter)).letter
        again = Append(found.topic, await self._records(found), found.partition)
        positions = await self._context.log.commit(GROUP, [], [again, *_resolutions([letter], "retried", caller, "")])
        await self._context.applied(p for p in positions if p.topic != MATCHES)  # the view has none of these

    async def _records(self, letter: DeadLetter) -> list[Record]:
        """Return the records of a letter, to be appended again.

        Raises Conflict: one was not kept.
        """
        if letter.topic == RESULTS:
            return [await self._outcome(letter)]
        if letter.record and letter.topic not in ("", DEAD, REGISTRY):
            return [Record(letter.record, headers=letter.headers)]
        if letter.offsets and letter.topic == EVENTS:
            places = [pack_position(letter.partition, offset) for offset in letter.offsets]
            rows = await self._context.view.events_at(places)
            if len(rows) == len(places):
                return await asyncio.to_thread(lambda: [_record(row.event) for row in rows])
        raise Conflict("this dead letter cannot be tried again: its record was not kept", remedy="emit it anew")

    async def _outcome(self, letter: DeadLetter) -> Record:
        """Return the record of an outcome again: it changes nothing in the task.

        Raises Conflict: the task is not kept any more.
        """
        task_id = parse_task_id(letter.event[1]) if letter.event else b""
        state = await self._context.view.task(task_id)
        ended = ended_of(state) if state is not None else None
        if state is None or state.call is None or ended is None:
            raise Conflict("this dead letter cannot be tried again: its task is not kept any more")
        frame = ResultFrame(VERSION, state.call, state.call.endpoint, state.accepted_us, [ended])
        return Record(encode(frame))

    async def dismiss(self, caller: Caller, request: r.DismissRequest) -> r.Dismissed:
        """Dismiss the given letters (all or none), or all open ones.

        Resolved letters stay as they are. Raises Invalid, NotFound.
        """
        self._context.check_accepting()
        if bool(request.letters) == request.all:
            what = "both letters and all" if request.all else "neither letters nor all"
            raise Invalid(f"there are {what} - at `$.letters`", remedy="give the letters' numbers, or all: true")
        wanted = dict.fromkeys(request.letters)
        # A letter may have a record of 1 MB: only one is in memory at a time.
        open_letters = [n for n in wanted if (await self._letter(caller, n)).settled is None]
        if request.all:
            open_letters = await self._open(caller)
        if not open_letters:
            return r.Dismissed(count=0)
        appends = _resolutions(open_letters, "dismissed", caller, request.reason[:REASON_CHARS])
        positions = await self._context.log.commit(GROUP, [], appends)
        await self._context.applied(positions)
        return r.Dismissed(count=len(open_letters), position=position_text(positions))

    async def _open(self, caller: Caller) -> list[int]:
        await self._context.barrier((DEAD,))
        found: list[int] = []
        cursor: str | None = ""
        while cursor is not None:
            rows, cursor = await self._context.view.dead(cursor, PAGE, caller.only)
            found += [row.id for row in rows]
        return found


def _record(event: Event) -> Record:
    value, headers = cloudevents.to_record(event)
    return Record(value, event.source.encode(), headers)


def _resolutions(
    letters: Sequence[int], how: Literal["dismissed", "retried"], caller: Caller, reason: str
) -> list[Append]:
    """Return the Resolution records of these letters, by partition."""
    by_partition: dict[int, list[int]] = {}
    for number in letters:
        partition, offset = unpack_position(number)
        by_partition.setdefault(partition, []).append(offset)
    at, appends = now_us(), []
    for partition, offsets in by_partition.items():
        parts = [tuple(offsets[i : i + RECORD_LETTERS]) for i in range(0, len(offsets), RECORD_LETTERS)]
        records = [Record(encode(Resolution(VERSION, part, how, caller.subject, reason, at))) for part in parts]
        appends.append(Append(DEAD, records, partition))
    return appends


def _info(row: DeadRow) -> r.DeadInfo:
    letter, settled = row.letter, row.settled
    return r.DeadInfo(
        id=row.id,
        stage=letter.stage,
        reason=letter.reason,
        at_us=letter.at_us,
        remedy=letter.remedy,
        rule=letter.rule,
        event=letter.event,
        topic=letter.topic,
        partition=letter.partition,
        offset=letter.offset,
        owner=letter.owner,
        state=settled.how if settled else "open",
        settled_us=settled.at_us if settled else 0,
        settled_by=settled.by if settled else "",
        settled_why=settled.reason if settled else "",
    )
