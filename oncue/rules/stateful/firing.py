"""Firer: makes tasks and dead letters of the closed windows of a RecordGroup.

Used by all runners.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from time import perf_counter
from typing import NamedTuple

import msgspec

from oncue.clocks.process import now_us
from oncue.ids import event_digest, window_task_ids
from oncue.log.base import Append, Record
from oncue.protocol.codec import encode
from oncue.protocol.records import EVENT_BYTES, REFUSED, VERSION, DeadLetter, Deployment
from oncue.protocol.topics import MATCHES
from oncue.rules.active_rules import ActiveRule, ActiveRules, RuleCompiler
from oncue.rules.evaluation.judge import NotTested, RuleJudge
from oncue.rules.evaluation.messages import FAILED, WINDOW, Question
from oncue.rules.evaluation.owner_shares import OwnerShares, used_up
from oncue.rules.evaluation.rule_source import as_stateful
from oncue.rules.limiters.base import DROPPED
from oncue.rules.limiters.catalog import MEMBERS as LIMITERS
from oncue.rules.loop_turn import LoopTurn
from oncue.rules.operators.chain import limited_key
from oncue.rules.operators.event_rows import EventRows
from oncue.rules.operators.overdue import not_fired, overdue_event, overdue_record
from oncue.rules.operators.records import DEAD, DROP, TELL, ClosedWindow, RuleLimits, TaskEnd
from oncue.rules.rule_cost import INLINE_S, window_s
from oncue.rules.stateful.fold import window_id_seed
from oncue.rules.stateful.limits import firing_id
from oncue.rules.stateful.record_group import RecordGroup
from oncue.rules.task_frames import EndpointDirectory, MadeTask, RuleError, TaskFrames


class Counted(NamedTuple):
    """Counts of one closed window."""

    entry: ActiveRule | None
    tasks: int
    reason: str = ""  # why there is none
    dead: bool = False


class FiringResult(NamedTuple):
    appends: list[Append]
    counted: list[Counted]  # of each closed window
    dead: int
    empty: Mapping[ActiveRule, int] = {}  # firings whose `for_each` was empty
    shadow: Mapping[ActiveRule, int] = {}  # firings that ran nothing


class Firer:
    """Makes tasks and dead letters of closed windows.

    `history` returns an older deployment by label and version; `judge` makes arguments that may
    take long; `offload` stores a payload that is too large to travel inline as a durable blob and
    returns the reference.
    """

    def __init__(
        self,
        directory: EndpointDirectory,
        active_rules: Callable[[], ActiveRules],
        offload: Callable[[bytes], Awaitable[bytes]] | None = None,
        history: Callable[[str, int], Awaitable[Deployment | None]] | None = None,
        judge: RuleJudge | None = None,
    ) -> None:
        self._directory, self._active_rules, self._offload, self._history = directory, active_rules, offload, history
        self._judge, self._shares = judge, OwnerShares()
        # The last older deployment used: (label, version), its rules.
        self._old: tuple[tuple[str, int], ActiveRules] = (("", 0), ActiveRules())
        # The last rule without operators of which firings have waited, and the same rule with some.
        self._stateless: tuple[ActiveRule, ActiveRule] | None = None
        self._unstarted: list[TaskEnd] = []  # of the group: firings that limiters count, without a task that does
        self.fired = self.dead = 0  # windows and dead letters, since the start

    async def fire(self, group: RecordGroup) -> FiringResult:
        frames = TaskFrames(self._directory, now_us())
        self._unstarted = []
        counted = await self._fire_windows(group, frames)
        if self._offload is not None:
            await frames.offload(self._offload)
        appends = frames.appends()
        if self._unstarted:
            appends.append(Append(MATCHES, [Record(encode(end), limited_key(end.rule)) for end in self._unstarted]))
        return FiringResult(appends, counted, len(frames.dead), frames.empty, frames.shadow)

    async def _fire_windows(self, group: RecordGroup, frames: TaskFrames) -> list[Counted]:
        counted: list[Counted] = []
        for bad in group.bad:
            letter = DeadLetter(
                VERSION, "match", bad.why[:2_000], frames.now_us, MATCHES, bad.batch.partition, bad.offset,
                record=bad.record.value[:EVENT_BYTES],
            )  # fmt: skip
            frames.dead.append(letter)
        turn = LoopTurn()
        for batch, offset, closed in group.closed:
            if turn.is_over:
                await turn.end()
            entry = self._active_rules().entries.get(closed.rule)
            end = closed.waited.end if closed.waited is not None else ""
            if entry is not None and entry.rule.mode == "shadow":
                if not end and not closed.refused:
                    frames.in_shadow(entry)
                self._free(closed)
                continue
            if (overdue := overdue_event(closed, window_id_seed(closed))) is not None:
                frames.events.append(overdue_record(overdue))
            if end == TELL:
                continue
            if end == DROP:
                counted.append(Counted(entry, 0, f"dropped: {not_fired(closed)}"))
                continue
            if closed.refused == DROPPED:  # the fold has counted it
                self._free(closed)
                continue
            try:
                counted.append(Counted(entry, await self._fire_window(entry, closed, frames)))
            except RuleError as e:
                self._free(closed)
                counted.append(Counted(entry, 0, e.reason, dead=True))
                frames.dead.append(_letter(closed, entry, batch.partition, offset, e, frames.now_us))
            except Exception as e:
                self._free(closed)
                counted.append(Counted(entry, 0, f"{type(e).__name__}: {e}", dead=True))
                error = RuleError("window", f"{type(e).__name__}: {e}")
                frames.dead.append(_letter(closed, entry, batch.partition, offset, error, frames.now_us))
        return counted

    async def _fire_window(self, entry: ActiveRule | None, closed: ClosedWindow, frames: TaskFrames) -> int:
        """Fire by the rule in force; return the number of tasks.

        If its arguments need values that were not buffered, the version under which the events
        matched fires. Raises RuleError.
        """
        if closed.waited is not None and closed.waited.end == DEAD:
            remedy = "`oncue dead retry N` (N: this letter's number) runs the rule with the events that came"
            raise RuleError("window", not_fired(closed), remedy if closed.events else "")
        if closed.refused:
            remedy = "wait until fewer wait, or raise `queue`, then `oncue dead retry N` (N: this letter's number)"
            raise RuleError("limit", closed.refused, remedy)
        if entry is None:
            raise RuleError(
                "window", f"there is no rule {closed.rule!r} any more", "deploy it again, then `oncue dead retry N`"
            )
        if entry.disabled_because:
            remedy = f"oncue rules enable {closed.rule}, then `oncue dead retry N` (N: this letter's number)"
            raise RuleError("window", f"the rule is disabled: {entry.disabled_because}", remedy)
        if len(closed.events) == 1 and closed.events[0].limit_keys is not None:
            entry = self._stateful(entry)
        operators = entry.rule.operators
        if operators is None or not set(operators.needs.names) <= set(closed.needs):
            entry = await self._older_version(closed)
        if self._judge is not None and _may_take_long(entry, closed):
            ready = frames.prepare(entry, None, await self._made(self._judge, entry, closed))
        else:
            ready = frames.prepare(entry, EventRows.of(closed))
        task_ids = window_task_ids(window_id_seed(closed), closed.opened_ms, len(ready))
        first, last = closed.events[0], closed.events[-1]
        frames.add(entry, ready, task_ids, (first.source, first.id), last.mark_us, _members(closed))
        if not ready or not entry.actions[0].call.firing_tasks:
            self._free(closed)
        return len(ready)

    def _free(self, closed: ClosedWindow) -> None:
        """Let the limiters know of a firing without tasks that have an outcome for them."""
        if closed.limited:
            self._unstarted.append(TaskEnd(VERSION, closed.rule, firing_id(closed), 0, 1, REFUSED, now_us() // 1000))

    async def _made(self, judge: RuleJudge, entry: ActiveRule, closed: ClosedWindow) -> Sequence[MadeTask]:
        """Return tasks that an evaluator made. Raises RuleError."""
        remedy = f"{entry.repair}; then `oncue dead retry N`"
        if entry.paused:
            raise RuleError("args", f"the rule is paused: {entry.paused}", remedy)
        owner = entry.deployment.owner
        if len(self._active_rules().owners) > 1 and self._shares.owes_much(owner):
            raise RuleError("args", used_up(owner), "wait, then `oncue dead retry N` (N: this letter's number)")
        about, began = f"{len(closed.events):,} events, the last {closed.events[-1].id}", perf_counter()
        try:
            answer = await judge.ask(entry, Question(WINDOW, encode(closed)), about)
        except NotTested as e:
            raise RuleError("args", str(e), remedy) from None
        finally:
            self._shares.lend(owner, perf_counter() - began)
        if answer.kind == FAILED:
            raise RuleError(answer.stage, answer.reason, answer.remedy)
        return answer.tasks

    def _stateful(self, entry: ActiveRule) -> ActiveRule:
        """Return the rule as it fires for a single event that has waited.

        It may have no limiters any more.
        """
        if entry.rule.operators is not None:
            return entry
        if self._stateless is None or self._stateless[0] is not entry:
            rule = as_stateful(entry.rule)
            again = ActiveRule(rule, entry.deployment, entry.counters, entry.disabled_because, entry.paused)
            self._stateless = entry, again
        return self._stateless[1]

    async def _older_version(self, closed: ClosedWindow) -> ActiveRule:
        wanted = (closed.label, closed.version)
        if self._old[0] != wanted:
            found = await self._history(*wanted) if self._history is not None else None
            self._old = (wanted, RuleCompiler().compile([found] if found is not None else []))
        entry = self._old[1].entries.get(closed.rule)
        if entry is None:
            raise RuleError(
                "window",
                f"the rule has changed, and {closed.label}@{closed.version}, under which the events matched, is not kept",
                "deploy it with the arguments that it had, then `oncue dead retry N` (N: this letter's number)",
            )
        return entry

    def count(self, group: RecordGroup, fired: FiringResult) -> None:
        """Update the counters, after the commit."""
        self.fired += sum(1 for counted in fired.counted if counted.tasks)
        self.dead += fired.dead
        for entry, tasks, reason, dead in fired.counted:
            if entry is not None:
                entry.counters.fired += tasks
                entry.counters.failed += dead
                entry.counters.last_reason = reason or entry.counters.last_reason
        for entry, count in fired.empty.items():
            entry.counters.empty += count
        for entry, count in fired.shadow.items():
            entry.counters.shadow += count
        entries = self._active_rules().entries
        for rule, count in group.suppressed.items():
            if rule in entries:
                entries[rule].counters.suppressed += count


def _may_take_long(entry: ActiveRule, closed: ClosedWindow) -> bool:
    size = sum(len(event.row) for event in closed.events)
    return window_s(entry.rule.runs, len(closed.events), size) > INLINE_S


def _members(closed: ClosedWindow) -> bytes:
    """Return the digests of all events but the first.

    A report finds their task by them.
    """
    return b"".join(event_digest(event.source, event.id) for event in closed.events[1:])


def _letter(
    closed: ClosedWindow, entry: ActiveRule | None, partition: int, offset: int, error: RuleError, at_us: int
) -> DeadLetter:
    """Return the dead letter of a whole window; a retry fires the same window."""
    reason, cause = error.reason, None
    if closed.events:
        first, last = closed.events[0], closed.events[-1]
        cause = first.source, first.id
    if closed.waited is not None and closed.waited.end == DEAD:
        fires = msgspec.structs.replace(closed.waited, end="", overdue_ms=0)
        closed = msgspec.structs.replace(closed, waited=fires)
    elif len(closed.events) > 1:
        reason = f"a batch of {len(closed.events):,} events, {first.id} ({first.source}) to {last.id}: {reason}"
    return DeadLetter(
        VERSION,
        error.stage,
        reason[:2_000],
        at_us,
        MATCHES,
        partition,
        offset,
        closed.rule,
        cause,
        encode(closed) if closed.events else b"",
        error.remedy,
        entry.deployment.owner if entry else "",
        members=_members(closed),
    )


def in_force(active_rules: ActiveRules, rule: str, operator: str) -> bool:
    """True if a rule in force has this operator (operator_id)."""
    entry = active_rules.entries.get(rule)
    if entry is None:
        # The rule may be in a file that this version cannot read: its windows wait.
        return bool(active_rules.broken)
    return entry.rule.operators is not None and operator in entry.rule.operators.ids


def retired(active_rules: ActiveRules, specs: Iterable[tuple[int, str, str]]) -> dict[int, list[tuple[str, str]]]:
    """Return the operators of open windows that are not in force.

    As partition -> [(rule, operator_id)].
    """
    found: dict[int, list[tuple[str, str]]] = {}
    for part, rule, spec in specs:
        if not in_force(active_rules, rule, spec):
            found.setdefault(part, []).append((rule, spec))
    return found


def limits_in_force(active_rules: ActiveRules, specs: Iterable[tuple[int, str, str]]) -> dict[int, list[RuleLimits]]:
    """Return the limiters in force of rules with firings that wait, by partition."""
    found: dict[int, dict[str, RuleLimits]] = {}
    for part, rule, spec in specs:
        entry = active_rules.entries.get(rule)
        if entry is None or entry.rule.operators is None or spec not in LIMITERS:
            continue
        packed = tuple(bytes(each.packed) for each in entry.rule.operators.limiters)
        if packed:
            limits = RuleLimits(rule, entry.deployment.label, entry.deployment.version, packed)
            found.setdefault(part, {})[rule] = limits
    return {part: list(rules.values()) for part, rules in found.items()}
