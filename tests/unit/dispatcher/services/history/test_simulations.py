"""Simulations: what counts as a difference, and why."""

from __future__ import annotations

from oncue.dispatcher.services.history.simulations import _compared
from oncue.protocol.records import Event
from oncue.rules.survey.messages import FIRES, NO, SurveyAnswer, Verdict
from oncue.view.chains.event_accounts import EventAccount
from oncue.view.event_lists import EventRow

ACCOUNTS = [EventAccount(1, EventRow(7, Event(id="a", source="/s", type="t"), 1), [], [], True)]
NO_LONGER = Verdict("r", NO, why="data.n: found 1, wanted >= 5")
FIRED = Verdict("r", FIRES, args_hash=b"1", args="1")


def answer(*verdicts: Verdict, rules: tuple[str, ...] = ("r",)) -> SurveyAnswer:
    return SurveyAnswer((verdicts,), rules=rules)


def test_a_rule_that_fires_no_more_differs_with_its_reason() -> None:
    page = _compared(ACCOUNTS, answer(FIRED), answer(NO_LONGER))
    (found,) = page.differences
    assert (found.before, found.after, found.why) == (FIRES, NO, NO_LONGER.why)


def test_reasons_of_a_rule_that_fires_neither_now_nor_then_are_no_difference() -> None:
    assert _compared(ACCOUNTS, answer(), answer(NO_LONGER)).differences == []
    assert _compared(ACCOUNTS, answer(Verdict("r", NO, why="other")), answer(NO_LONGER)).differences == []


def test_a_new_rule_and_a_removed_one_say_so() -> None:
    (new,) = _compared(ACCOUNTS, SurveyAnswer(), answer(FIRED)).differences
    assert (new.before, new.after, new.why) == ("-", FIRES, "the rule is new")
    (gone,) = _compared(ACCOUNTS, answer(FIRED), answer(rules=())).differences
    assert (gone.before, gone.after, gone.why) == (FIRES, "-", "the file has no such rule any more")


def test_other_arguments_differ() -> None:
    (found,) = _compared(ACCOUNTS, answer(FIRED), answer(Verdict("r", FIRES, args_hash=b"2", args="2"))).differences
    assert (found.args_before, found.args_after) == ("1", "2")
