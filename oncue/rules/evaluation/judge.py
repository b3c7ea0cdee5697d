"""RuleJudge: has rules evaluated apart, and pauses those over budget.

    mark stored ──► evaluator ──► answer ──► mark removed
                        └── over its budget ──► pause recorded ──► mark removed

A mark that is left says that the server died in between: `pause_left` pauses its rule, so that it
is not tried a second time by itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from oncue.clocks.process import now_us
from oncue.protocol.records import VERSION, RuleSwitch
from oncue.rules.active_rules import ActiveRule
from oncue.rules.evaluation.evaluator import Evaluator, EvaluatorBusy, OverBudget, Unanswered
from oncue.rules.evaluation.messages import Answer, Question
from oncue.rules.evaluation.owner_shares import DecayingTime
from oncue.rules.evaluation.trials import TrialFile

SLOW_S = 0.1  # of CPU time; so many evaluations in a row that take longer pause the rule
SLOW_S_PER_BYTE = 5e-7
SLOW = 3
WASTED_S = 10.0  # CPU time of one owner's rules that took too long; then others of them wait
WASTED_PER_S = 1 / 60  # of it is forgiven each second
PROVEN = 10_000  # rules whose cost is remembered
# Records that the rule is paused; False: that was not possible.
Pause = Callable[[ActiveRule, str], Awaitable[bool]]
_log = logging.getLogger(__name__)


def pause_of(entry: ActiveRule, why: str) -> RuleSwitch:
    """Return the record of a pause; it holds until the rule is changed or enabled."""
    return RuleSwitch(VERSION, entry.rule.name, False, "oncue", why, now_us(), entry.hash())


class NotTested(Exception):
    """Raised when a rule is not tested for an event; its text is the reason."""


class RuleJudge:
    """Asks an Evaluator about one rule and one event at a time. Close it at the end."""

    def __init__(self, pause: Pause, trials: TrialFile | None = None) -> None:
        self._pause, self._trials = pause, trials
        self._evaluator = Evaluator()
        self._proven: dict[str, int] = {}  # hash of a rule -> bits of the largest size that went well
        self._slow: dict[str, int] = {}  # hash -> slow evaluations in a row
        self._wasted = DecayingTime(WASTED_PER_S)  # CPU time of rules that took too long

    async def ask(self, entry: ActiveRule, question: Question, about: str) -> Answer:
        """Return the answer.

        `about`: the event, for people. Raises NotTested: this question is open.
        """
        owner = entry.deployment.owner
        if self._wasted.get(owner) > WASTED_S:
            raise NotTested(
                f"rules of {owner} that took too long have used {WASTED_S:g} s; others of them that may"
                f" take long wait for {WASTED_S / WASTED_PER_S / 60:g} minutes"
            )
        found, bits = entry.hash(), len(question.value).bit_length()
        marked = self._trials is not None and bits > self._proven.get(found, -1)
        if marked:
            await self._mark(found, entry.rule.name)
        recorded = True
        try:
            answer = await self._evaluator.ask(entry.rule, question)
            self._remember(found, bits)
            if self._too_slow(entry, answer.cpu_s, len(question.value)):
                why = f"{SLOW} evaluations in a row took long, the last {answer.cpu_s * 1000:.0f} ms of CPU time ({about})"
                recorded = await self._pause(entry, why)
            return answer
        except OverBudget as e:
            self._wasted.add(owner, e.cpu_s)
            why = f"its evaluation {e} ({about})"
            recorded = await self._pause(entry, why)
            raise NotTested(f"the rule is paused: {why}") from None
        except (Unanswered, EvaluatorBusy) as e:
            raise NotTested(str(e)) from None
        finally:
            if marked and recorded:
                self._unmark(found)

    async def _mark(self, rule_hash: str, name: str) -> None:
        assert self._trials is not None
        try:
            await asyncio.to_thread(self._trials.add, rule_hash, name)
        except OSError as e:
            _log.warning("the rule %r is tried without a mark: %s", name, e)

    def _unmark(self, rule_hash: str) -> None:
        assert self._trials is not None
        try:
            self._trials.remove(rule_hash)
        except OSError as e:
            _log.warning("a mark of a tried rule is left, so the next start pauses it: %s", e)

    def _remember(self, rule_hash: str, bits: int) -> None:
        if len(self._proven) >= PROVEN:
            self._proven.clear()
        self._proven[rule_hash] = max(bits, self._proven.get(rule_hash, -1))

    def _too_slow(self, entry: ActiveRule, cpu_s: float, size: int) -> bool:
        rule_hash = entry.hash()
        if cpu_s <= SLOW_S + SLOW_S_PER_BYTE * size:
            self._slow.pop(rule_hash, None)
            return False
        self._wasted.add(entry.deployment.owner, cpu_s)
        self._slow[rule_hash] = self._slow.get(rule_hash, 0) + 1
        return self._slow[rule_hash] >= SLOW

    def resumed(self, entry: ActiveRule) -> None:
        """Forget what is known of the rule's cost: a person lets it try again."""
        found = entry.hash()
        self._proven.pop(found, None)
        self._slow.pop(found, None)

    async def pause_left(self, entries: Iterable[ActiveRule]) -> None:
        """Pause the rules that were being tried when a former process of this server died."""
        if self._trials is None or not self._trials.left:
            return
        why = "the server ended while this rule was being tried; it is not tried again by itself"
        found = {e.hash(): e for e in entries if e.rule.name in self._trials.left.values()}
        for mark in list(self._trials.left):
            if mark not in found or await self._pause(found[mark], why):
                self._unmark(mark)

    async def close(self) -> None:
        await self._evaluator.close()
