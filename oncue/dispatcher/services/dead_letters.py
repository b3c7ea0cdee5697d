"""Dead letters: looked at, tried again, dismissed. A letter of a rule is its owner's; all others (records that nobody could
read) are for admins.

What is done about a letter is a record in oncue.dead behind it: no letter is taken out, and a view that is made again from
the log gives the same answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.context import ServerContext, position_text
from oncue.errors import Conflict, Invalid, NotFound
from oncue.ids import now_us
from oncue.log import Append, Record
from oncue.protocol import api as r
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION, Resolution
from oncue.protocol.topics import DEAD, REGISTRY
from oncue.view import DeadRow
from oncue.view.record_rows import partition_and_offset

GROUP = "oncue.dead.retries"  # that the log keeps no place for: it commits appends only
REASON_CHARS = 1_000
PAGE = 1_000
RECORD_LETTERS = 5_000  # in one record


class DeadDesk(ServerContext):
    async def dead(self, who: Caller, cursor: str, limit: int, settled: bool = False) -> r.Page:
        rows, following = await self.view.dead(cursor, limit, who.only, settled)
        return r.Page(items=[_info(row) for row in rows], next=following)

    async def dead_letter(self, who: Caller, letter: int) -> r.DeadInfo:
        return _info(await self._letter(who, letter))

    async def _letter(self, who: Caller, letter: int) -> DeadRow:
        found = await self.view.dead_letter(letter)
        if found is None:  # written a moment ago, perhaps
            await self.barrier((DEAD,))
            found = await self.view.dead_letter(letter)
        if found is None or not who.sees(found.letter.owner):
            raise NotFound(f"there is no dead letter {letter}", remedy="oncue dead list --all shows what there is")
        return found

    async def retry_dead(self, who: Caller, letter: int) -> None:
        """Append the record again to the topic that it came from, where its rules see it as a new one; in the same
        commit the letter is marked as retried."""
        self.accepting()
        found = (await self._letter(who, letter)).letter
        if not found.record or found.topic in ("", DEAD, REGISTRY):
            raise Conflict("this dead letter cannot be tried again: its record was not kept", remedy="emit it anew")
        again = Append(found.topic, [Record(found.record, headers=found.headers)], found.partition)
        positions = await self.log.commit(GROUP, [], [again, *_settled([letter], "retried", who, "")])
        await self.seen(positions)

    async def dismiss_dead(self, who: Caller, request: r.DismissRequest) -> r.Dismissed:
        """All or none of the letters named, or all that are open now. Those that are settled already stay as they are."""
        self.accepting()
        if bool(request.letters) == request.all:
            what = "both letters and all" if request.all else "neither letters nor all"
            raise Invalid(f"there are {what} - at `$.letters`", remedy="give the letters' numbers, or all: true")
        rows = [await self._letter(who, n) for n in dict.fromkeys(request.letters)]
        open_letters = [row.id for row in rows if row.settled is None] if rows else await self._open(who)
        if not open_letters:
            return r.Dismissed(count=0)
        appends = _settled(open_letters, "dismissed", who, request.reason[:REASON_CHARS])
        positions = await self.log.commit(GROUP, [], appends)
        await self.seen(positions)
        return r.Dismissed(count=len(open_letters), position=position_text(positions))

    async def _open(self, who: Caller) -> list[int]:
        await self.barrier((DEAD,))
        found: list[int] = []
        cursor: str | None = ""
        while cursor is not None:
            rows, cursor = await self.view.dead(cursor, PAGE, who.only)
            found += [row.id for row in rows]
        return found


def _settled(letters: Sequence[int], how: Literal["dismissed", "retried"], who: Caller, reason: str) -> list[Append]:
    """In each partition that has some of the letters."""
    by_partition: dict[int, list[int]] = {}
    for number in letters:
        partition, offset = partition_and_offset(number)
        by_partition.setdefault(partition, []).append(offset)
    at, appends = now_us(), []
    for partition, offsets in by_partition.items():
        parts = [tuple(offsets[i : i + RECORD_LETTERS]) for i in range(0, len(offsets), RECORD_LETTERS)]
        records = [Record(encode(Resolution(VERSION, part, how, who.subject, reason, at))) for part in parts]
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
