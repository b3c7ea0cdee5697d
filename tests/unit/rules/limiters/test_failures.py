"""pause_on_failures: failures in a row stop a rule; a person lets it go on."""

from __future__ import annotations

import pytest

from oncue.protocol.codec import encode
from oncue.protocol.records import CANCELLED, ERROR, EXPIRED, LOST, OK, VERSION
from oncue.rules.limiters.failures import FailuresLimiter
from oncue.rules.operators.records import ClosedWindow, RuleLimits, TaskEnd, Tick
from oncue.rules.stateful.limits import firing_id, fold_record
from oncue.rules.testing.simulation import InMemoryStates
from tests.unit.rules.limiters.test_fold import limited

TWO = FailuresLimiter("", failures=2)


class Rule:
    def __init__(self) -> None:
        self.states, self.records, self.at_ms, self.limiter = InMemoryStates(), 0, 1_000, TWO

    def fire(self) -> ClosedWindow | None:
        """Let an event match; return its firing, None if it waits."""
        found = self._fold(limited((), (self.limiter,), self.records, self.at_ms, "k"))
        return found[0] if found else None

    def end(self, closed: ClosedWindow | None, status: int) -> None:
        assert closed is not None
        assert self._fold(TaskEnd(VERSION, "r", firing_id(closed), 0, 1, status, self.at_ms)) == []

    def resume(self) -> list[ClosedWindow]:
        self.limiter = TWO.resumed(self.at_ms)
        return self._fold(Tick(VERSION, self.at_ms, (), (RuleLimits("r", "f", 1, (encode(self.limiter),)),)))

    def _fold(self, record: object) -> list[ClosedWindow]:
        self.at_ms += 1
        self.records += 1
        return fold_record(self.states, record, 0, self.records)  # type: ignore[arg-type]


def test_failures_in_a_row_stop_it_and_a_resume_lets_all_run() -> None:
    rule = Rule()
    rule.end(rule.fire(), ERROR)
    rule.end(rule.fire(), LOST)
    assert [rule.fire(), rule.fire()] == [None, None]
    first, second = rule.resume()
    assert [first.events[0].id, second.events[0].id] == ["e2", "e3"] or first.opening < second.opening
    rule.end(first, ERROR)
    assert rule.fire() is not None  # one failure since
    rule.end(second, ERROR)
    assert rule.fire() is None


def test_a_success_begins_anew_but_does_not_end_the_pause() -> None:
    rule = Rule()
    running = [rule.fire() for _ in range(4)]
    rule.end(running[0], ERROR)
    rule.end(running[1], OK)
    rule.end(running[2], ERROR)
    late = rule.fire()
    assert late is not None
    rule.end(running[3], ERROR)
    rule.end(late, OK)
    assert rule.fire() is None


def test_an_outcome_that_is_told_twice_counts_once() -> None:
    rule = Rule()
    one = rule.fire()
    rule.end(one, ERROR)
    rule.end(one, ERROR)
    assert rule.fire() is not None


@pytest.mark.parametrize("status", [CANCELLED, EXPIRED])
def test_ends_that_say_nothing_of_the_function_do_not_count(status: int) -> None:
    rule = Rule()
    for _ in range(3):
        rule.end(rule.fire(), status)
    assert rule.fire() is not None
