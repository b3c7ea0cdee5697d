"""Reports: what became of each event of a period."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import groupby

import msgspec

from oncue.clocks.process import now_us
from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.context import ServerContext
from oncue.dispatcher.off_loop import off_loop
from oncue.dispatcher.services.deployment.deployed_rules import DeployedRules
from oncue.dispatcher.services.history.event_parts import Circumstances, needs_preview, reasons, stages
from oncue.dispatcher.services.history.rules_then import RulesThen
from oncue.dispatcher.services.stateful_rules import StatefulRuleService
from oncue.dispatcher.services.task_info import task_info
from oncue.errors import Invalid, NotFound
from oncue.protocol import api as r
from oncue.protocol import cloudevents
from oncue.protocol.api.reports import DONE
from oncue.protocol.records import Event, Headers
from oncue.protocol.topics import DEAD, EVENTS, MATCHES, RESULTS
from oncue.rules.engine import GROUP
from oncue.rules.matching.fields import MISSING as NOTHING
from oncue.rules.matching.fields import Get, getter
from oncue.rules.parsing.condition_parser import TRIGGER
from oncue.rules.survey.messages import Verdict
from oncue.rules.survey.surveyor import SurveyFailed, Surveyor
from oncue.task_lifecycle import State
from oncue.view import EventRow
from oncue.view.chains.event_accounts import EventAccount
from oncue.view.event_lists import cursor_row
from oncue.view.record_rows import unpack_position

FAILURES = 200  # of a page, whose reasons are read
GROUP_CHARS = 200


class ReportFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Filters of a report, combined by AND."""

    since_us: int = 0
    until_us: int = 0  # 0: now
    rule: str = ""  # and the rules that follow its outcomes
    trigger: str = ""
    group: str = ""  # path into the event
    cursor: str = ""
    limit: int = 200


class ReportService:
    """Accounts for events. Close it at the end."""

    def __init__(
        self, context: ServerContext, deployed: DeployedRules, stateful: StatefulRuleService, surveyor: Surveyor
    ) -> None:
        self._context, self._deployed, self._stateful, self._surveyor = context, deployed, stateful, surveyor

    async def page(self, caller: Caller, filters: ReportFilter) -> r.Page:
        """Return what became of events, in the order of their arrival.

        There may be more with `next`, even if the page has no items. Raises Invalid, NotFound.
        """
        group = _path(filters.group)
        after = cursor_row(filters.cursor, 0)
        until_us = filters.until_us or now_us() + 1
        only = self._chain(caller, filters.rule)
        at, accounts, following = await self._read(caller, filters, until_us, after, only)
        chosen = [account for account in accounts if not filters.trigger or _is_of(account.row.event, filters.trigger)]
        verdicts, untested = await self._verdicts(caller, chosen, at)
        at = at._replace(untested=untested)
        held, again = await self._held(chosen, verdicts, at)
        if again:  # what was held before may have fired meanwhile
            await self._settled()
            limit = len(accounts)
            fresh, _ = await self._context.view.accounts(filters.since_us, until_us, after, limit)
            newest = {account.n: account for account in fresh}
            chosen = [newest.get(account.n, account) for account in chosen]
        at = at._replace(why=await self._failures(chosen))
        items = await off_loop(_items, chosen, verdicts, at, held, group, filters.rule)
        return r.Page(items=items, next=None if following is None else str(following))

    def _chain(self, caller: Caller, rule: str) -> frozenset[str]:
        """Return a rule and those that follow its outcomes. Raises NotFound."""
        if not rule:
            return frozenset()
        entries = self._deployed.engine.active_rules.entries
        entry = entries.get(rule)
        if entry is None or not self._deployed.visible(caller, entry.deployment.label):
            raise NotFound(f"there is no rule {rule!r}", remedy="`oncue rules` lists those that are deployed")
        found, fresh = {rule}, {rule}
        while fresh:
            fresh = {n for n, e in entries.items() if n not in found and fresh.intersection(e.rule.follows or ())}
            found |= fresh
        return frozenset(found)

    async def _read(
        self, caller: Caller, filters: ReportFilter, until_us: int, after: int, only: frozenset[str]
    ) -> tuple[Circumstances, list[EventAccount], int | None]:
        """Read in an order that lets no event look lost that is only on its way."""
        log = self._context.log
        tested = await log.committed(GROUP)
        matched = await log.end_offsets((MATCHES,))
        folded = await self._stateful.has_folded(matched)
        await self._settled()
        accounts, following = await self._context.view.accounts(filters.since_us, until_us, after, filters.limit)

        def reached(place: int) -> bool:
            partition, offset = unpack_position(place)
            return offset < tested.get((EVENTS, partition), 0)

        deployments = await self._context.view.deployments_since(filters.since_us)
        visible = [d for d in deployments if caller.sees(d.owner)]
        then = RulesThen(visible, await self._context.view.switches())
        return Circumstances(caller, only, then, reached, folded, "", lambda _: ""), accounts, following

    async def _settled(self) -> None:
        topics = (EVENTS, DEAD, RESULTS, *self._context.registry.tasks_topics())
        await self._context.barrier(topics)

    async def _verdicts(
        self, caller: Caller, accounts: Sequence[EventAccount], at: Circumstances
    ) -> tuple[list[tuple[Verdict, ...]], str]:
        """Return the verdicts of the rules of then for each event, and why there are none."""
        found: list[tuple[Verdict, ...]] = []
        untested = ""
        for number, part in groupby(accounts, lambda account: at.rules.number(account.row.at_us)):
            events = [account.row.event for account in part]
            files = at.rules.in_force(number)
            if not files:
                found += [()] * len(events)
                continue
            try:
                packed = await off_loop(_packed, events)
                answer = await self._surveyor.ask(caller.subject, files, sorted(at.only), packed)
                found += answer.verdicts
            except SurveyFailed as e:
                untested = e.message
                found += [()] * len(events)
        return found, untested

    async def _held(
        self, accounts: Sequence[EventAccount], verdicts: Sequence[tuple[Verdict, ...]], at: Circumstances
    ) -> tuple[dict[int, set[str]], bool]:
        """Return the rules whose operators hold each event, and True if some hold none."""
        held: dict[int, set[str]] = {}
        again = False
        asked: dict[str, list[tuple[int, Event]]] = {}
        for account, found in zip(accounts, verdicts, strict=True):
            for rule in needs_preview(account, found, at):
                asked.setdefault(rule, []).append((account.n, account.row.event))
        for rule, events in asked.items():
            answers = await self._stateful.buffers(rule, [event for _, event in events])
            for (n, _), holds in zip(events, answers, strict=True):
                again = again or not holds
                if holds:
                    held.setdefault(n, set()).add(rule)
        return held, again

    async def _failures(self, accounts: Sequence[EventAccount]) -> Callable[[bytes], str]:
        """Return a function that tells why a task failed."""
        ids = [t.id for account in accounts for t in account.tasks if t.state not in (State.WAITING, State.SUCCEEDED)]
        found = await self._context.view.tasks_of(ids[:FAILURES]) if ids else {}
        name = self._context.registry.endpoint_name
        whys = await asyncio.to_thread(lambda: {i: task_info(state, name).why for i, state in found.items()})
        return lambda task: whys.get(task, "")


def _items(
    accounts: Sequence[EventAccount],
    verdicts: Sequence[tuple[Verdict, ...]],
    at: Circumstances,
    held: dict[int, set[str]],
    group: Get | None,
    rule: str,
) -> list[r.ReportItem]:
    items = []
    for account, found in zip(accounts, verdicts, strict=True):
        mine = [task for task in account.tasks if at.caller.sees(task.call.owner)]
        made = {task.call.rule for task in mine if not at.only or task.call.rule in at.only}
        about = {v.rule for v in found} | made | {row.letter.rule for row in account.letters}
        if rule and rule not in about and not at.untested:
            continue
        item = _item(account.row, reasons(account, found, at, held.get(account.n, ())))
        items.append(
            msgspec.structs.replace(
                item,
                rules=sorted(filter(None, made)),
                tasks=len(mine),
                group=_group(account.row.event, group),
                stages=stages(account, at) if item.state == DONE else None,
            )
        )
    return items


def _item(row: EventRow, found: list[r.ReportReason]) -> r.ReportItem:
    event = row.event
    return r.ReportItem(
        offset=row.offset,
        source=event.source,
        id=event.id,
        type=event.type,
        subject=event.subject or "",
        at_us=row.at_us,
        state=found[0].state,
        reasons=found,
    )


def _packed(events: Sequence[Event]) -> list[tuple[bytes, Headers]]:
    return [cloudevents.to_record(event) for event in events]


def _is_of(event: Event, trigger: str) -> bool:
    return event.extensions.get(TRIGGER) == trigger


def _group(event: Event, group: Get | None) -> str:
    if group is None:
        return ""
    found = group(event)
    return "" if found is NOTHING else str(found)[:GROUP_CHARS]


def _path(text: str) -> Get | None:
    """Compile the path of `group`. Raises Invalid."""
    if not text:
        return None
    try:
        return getter(text)
    except ValueError as e:
        raise Invalid(f"group: {e}", remedy="give a path such as data.sample") from None
