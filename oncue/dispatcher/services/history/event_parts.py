"""Accounts for one event: what each rule made of it, and why others made nothing.

    tasks, dead letters (view) ──┐
    verdicts (rules of then) ────┴─► ReportReason of each rule ─► the most serious is the event's

Pure: everything that has to be asked is in `Circumstances`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.services.history.rules_then import RulesThen
from oncue.protocol import api as r
from oncue.protocol.api.reports import DONE, FAILED, MISSING, PASSED_OVER, REPORT_STATES, WAITING
from oncue.protocol.event_types import mark_us
from oncue.rules.survey import messages as survey
from oncue.rules.survey.messages import Verdict
from oncue.task_lifecycle import State
from oncue.view import DeadRow
from oncue.view.chains.event_accounts import AccountedTask, EventAccount

WHYS = 20  # reasons of one event


class Circumstances(NamedTuple):
    """Facts that the accounts of one page share."""

    caller: Caller
    only: frozenset[str]  # rules; empty: all
    rules: RulesThen
    reached: Callable[[int], bool]  # the rules have tested the event at a place
    folded: bool  # the operators have all their matches
    untested: str  # why the rules could not be tested; "": they were
    why: Callable[[bytes], str]  # of a task that failed


def needs_preview(account: EventAccount, verdicts: Iterable[Verdict], at: Circumstances) -> list[str]:
    """Return the rules whose operators have to be asked about the event."""
    told = _told(account, at)
    if "" in told or not at.folded or not at.reached(account.row.offset):
        return []
    return [v.rule for v in verdicts if v.kind == survey.MATCHED and v.holds and v.rule not in told]


def _told(account: EventAccount, at: Circumstances) -> set[str]:
    """Return the rules that left a trace of the event; "": a letter about all."""
    letters = {row.letter.rule for row in account.letters if row.settled is None or row.settled.how == "dismissed"}
    return {task.call.rule for task in account.tasks} | letters


def reasons(
    account: EventAccount, verdicts: Sequence[Verdict], at: Circumstances, held: Collection[str]
) -> list[r.ReportReason]:
    """Return what became of the event, the most serious first.

    `held`: rules whose operators hold the event.
    """
    found = [*_of_tasks(account, at), *_of_letters(account.letters, at)]
    told = _told(account, at)
    if not account.whole:
        found.append(r.ReportReason(state=MISSING, why="it has more tasks than a report reads: oncue trace"))
    if "" not in told:
        nearest = sorted(verdicts, key=lambda v: -v.held)  # rules of which most conditions hold
        found += [_of_verdict(account, v, at, held) for v in nearest if v.rule not in told]
        if at.untested and not found:
            found.append(r.ReportReason(state=MISSING, why=f"not known: {at.untested}"))
    if not found:
        whose = "" if at.caller.sees_all else " of yours"
        found.append(r.ReportReason(state=PASSED_OVER, why=f"no rule{whose} is about it", condition="on"))
    found.sort(key=lambda reason: REPORT_STATES.index(reason.state))
    if found[0].state != PASSED_OVER:
        found = [reason for reason in found if reason.state != PASSED_OVER]
    return found[:WHYS]


def _of_tasks(account: EventAccount, at: Circumstances) -> Iterable[r.ReportReason]:
    replaced = _replaced(account.tasks)
    for task in account.tasks:
        call = task.call
        if task.id in replaced or not at.caller.sees(call.owner) or (at.only and call.rule not in at.only):
            continue
        if task.state is State.WAITING:
            why = "its task runs" if task.started_us else "its task waits"
            yield r.ReportReason(state=WAITING, why=why, rule=call.rule, task=task.id.hex())
        elif task.state is State.SUCCEEDED:
            yield r.ReportReason(state=DONE, rule=call.rule, task=task.id.hex())
        else:
            why = ": ".join(filter(None, (task.state.name.lower(), at.why(task.id))))
            yield r.ReportReason(state=FAILED, why=why, rule=call.rule, task=task.id.hex())


def _replaced(tasks: Sequence[AccountedTask]) -> set[bytes]:
    """Return the tasks in whose place others count, and all that followed them.

    A retry by hand counts in place of its task, the newest replay of a rule in place of all that
    the rule made of the event before.
    """
    found = {task.retry_of for task in tasks if task.retry_of}
    by_id = {task.id: task for task in tasks}
    replays = {task.id: _replay(task, by_id) for task in tasks}
    newest: dict[str, AccountedTask] = {}  # of each rule
    for task in tasks:
        known = newest.get(task.call.rule)
        if replays[task.id] and (known is None or task.accepted_us > known.accepted_us):
            newest[task.call.rule] = task
    for task in tasks:
        by = newest.get(task.call.rule)
        if by is not None and not task.after and replays[task.id] != replays[by.id]:
            found.add(task.id)
    for _ in tasks:
        more = {task.id for task in tasks if task.after in found} - found
        if not more:
            break
        found |= more
    return found


def _replay(task: AccountedTask, by_id: Mapping[bytes, AccountedTask]) -> str:
    """Return the replay that made a task, or the task of which it is a retry by hand."""
    while task.retry_of in by_id:
        task = by_id[task.retry_of]
    return task.call.replay


def _of_letters(letters: Sequence[DeadRow], at: Circumstances) -> Iterable[r.ReportReason]:
    for row in letters:
        letter, settled = row.letter, row.settled
        hidden = not at.caller.sees(letter.owner) or bool(at.only and letter.rule and letter.rule not in at.only)
        if hidden or (settled is not None and settled.how == "retried"):
            continue
        if settled is None:
            why = f"dead letter {row.id}: {letter.reason}"
            yield r.ReportReason(state=FAILED, why=why, rule=letter.rule, letter=row.id)
        else:
            by = ": ".join(filter(None, (f"dead letter {row.id} was dismissed by {settled.by}", settled.reason)))
            yield r.ReportReason(
                state=PASSED_OVER, why=by, rule=letter.rule, letter=row.id, condition="a dismissed dead letter"
            )


def _of_verdict(account: EventAccount, v: Verdict, at: Circumstances, held: Collection[str]) -> r.ReportReason:
    """Return what became of an event of which a rule has left no trace."""

    def reason(state: str, why: str, condition: str = "") -> r.ReportReason:
        return r.ReportReason(state=state, why=why, rule=v.rule, condition=condition)

    if v.kind == survey.NO:
        return reason(PASSED_OVER, v.why, v.condition)
    if not at.reached(account.row.offset):
        return reason(WAITING, "the rules have not come to it yet")
    if v.kind == survey.MATCHED:
        if not at.folded:
            return reason(WAITING, "the operators of the rule have not come to it yet")
        if v.rule in held:
            return reason(WAITING, f"it is held by {v.why}")
        if v.suppresses:
            return reason(PASSED_OVER, f"its operators left it out: {v.why}", v.why)
    if excuse := at.rules.excuse(v.rule, v.label, account.row.at_us):
        return reason(PASSED_OVER, excuse, "the rule was changed or switched")
    if v.kind == survey.FAILED:
        return reason(MISSING, f"it cannot be processed, and has no dead letter: {v.why}")
    return reason(MISSING, "the rule fires for it, and it has neither a task nor a dead letter")


def stages(account: EventAccount, at: Circumstances) -> r.ReportStages | None:
    """Return the times of the chain that ended last; None: no task has ended."""
    tasks = {task.id: task for task in account.tasks if at.caller.sees(task.call.owner)}
    closed = [t for t in tasks.values() if t.ended_us and (not at.only or t.call.rule in at.only)]
    last: AccountedTask | None = max(closed, key=lambda task: task.ended_us, default=None)
    if last is None:
        return None
    match = wait = run = 0
    for _ in range(len(tasks)):
        before = tasks.get(last.after)
        began = before.ended_us if before is not None else account.row.at_us
        started = last.started_us or last.ended_us
        match += max(0, last.accepted_us - began)
        wait += max(0, started - last.accepted_us)
        run += max(0, last.ended_us - started)
        if before is None:
            break
        last = before
    mark = mark_us(account.row.event)
    trigger = max(0, account.row.at_us - mark) if mark else 0
    return r.ReportStages(trigger=trigger, match=match, wait=wait, run=run)
