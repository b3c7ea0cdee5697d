"""Runs the `tests:` of a rule file offline with the production code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from oncue.errors import Invalid, OncueError
from oncue.protocol import cloudevents
from oncue.protocol.api import Explanation
from oncue.protocol.records import EVENT_BYTES, Event
from oncue.rules.explain import explain
from oncue.rules.matching.conditions import equal, show
from oncue.rules.parsing.condition_parser import TRIGGER
from oncue.rules.parsing.outcome_pattern import as_outcome, is_done
from oncue.rules.parsing.overdue_pattern import as_overdue, is_overdue
from oncue.rules.parsing.rule_file import Rule, RuleSet, RuleTest
from oncue.rules.testing.simulation import run_over_time


class TestResult(msgspec.Struct, frozen=True):
    __test__ = False  # not a test of pytest's

    rule: str
    line: int
    passed: bool
    why: str
    explanation: Explanation | None = None


def run_tests(rules: RuleSet, folder: Path) -> list[TestResult]:
    """Run all tests; return one result per test.

    Event files are relative to `folder`.
    """
    return [_run(rule, test, folder) for rule in rules.rules for test in rule.tests]


def read_event(given: str | Mapping[str, Any], folder: Path, on: Any = None) -> Event:
    """Return the event of a test or of a command line.

    It is given as the name of a JSON file, or as a mapping. Missing required attributes get
    defaults; the trigger is that of `on` if it names one, and so are rule and state of an outcome.
    Raises Invalid.
    """
    if isinstance(given, str):
        path = folder / given
        try:
            if path.stat().st_size > EVENT_BYTES:
                raise Invalid(f"{path} is over {EVENT_BYTES:,} bytes", remedy="an event is smaller")
            content = msgspec.json.decode(path.read_bytes())
        except OSError as e:
            raise Invalid(f"{path}: {e.strerror}", remedy="names are relative to the rule file") from None
        except msgspec.MsgspecError as e:
            raise Invalid(f"{path} is not JSON: {e}") from None
        if not isinstance(content, dict):
            raise Invalid(f"{path} is not an event: it is {type(content).__name__}", remedy="one CloudEvent as JSON")
    else:
        content = dict(given)
    filled = {"specversion": "1.0", "id": "test", "source": "test", "type": "test"} | content
    if isinstance(on, str):
        filled.setdefault(TRIGGER, on)
    elif is_done(on):
        filled = as_outcome(on, content)
    elif is_overdue(on):
        filled = as_overdue(on, content)
    try:
        return cloudevents.from_json(msgspec.json.encode(filled))
    except (TypeError, ValueError) as e:
        raise Invalid(f"the event cannot be JSON: {e}") from None


def _run(rule: Rule, test: RuleTest, folder: Path) -> TestResult:
    if test.events or test.dead or rule.operators is not None or type(test.fires) is int:
        passed, why = run_over_time(rule, test, lambda given: read_event(given, folder, rule.on))
        return TestResult(rule.name, test.line, passed, why)
    try:
        event = read_event(test.event, folder, rule.on)
    except OncueError as e:
        return TestResult(rule.name, test.line, False, str(e))
    found = explain(rule, event)
    if found.fires != test.fires:
        verb = "fires" if found.fires else "does not fire"
        return TestResult(rule.name, test.line, False, f"it {verb}: {found.why}", found)
    if test.args is not None and found.fires and not equal(test.args)(found.args):
        why = f"the arguments are {show(found.args)}, expected {show(test.args)}"
        return TestResult(rule.name, test.line, False, why, found)
    return TestResult(rule.name, test.line, True, found.why, found)
