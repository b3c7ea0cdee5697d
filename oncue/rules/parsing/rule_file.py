"""Strict parser of rule files: text -> RuleSet of TriggerSpecs and Rules.

All errors of a file are reported in one RuleFileError.

`on`, `match` and `when` become one list of steps in the order of their tests (conditions.py,
cel.py). docs/rules.md describes the format.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from oncue.errors import Invalid, RuleFileError
from oncue.functions.body import Packed
from oncue.protocol.records import StoredRetryPolicy
from oncue.quantities import Rate
from oncue.rules.limiters.base import AnyLimiter
from oncue.rules.limiters.catalog import SECTIONS as LIMITERS
from oncue.rules.limiters.failures import parse_failures
from oncue.rules.matching.cel import Cel, compile_cel
from oncue.rules.matching.conditions import Condition
from oncue.rules.matching.regex import MOST_PROGRAM, ProgramMeter, metered
from oncue.rules.operators.catalog import CATALOGUE
from oncue.rules.operators.chain import OperatorChain, parse_operators
from oncue.rules.operators.event_rows import refer_to_event
from oncue.rules.operators.options import duration
from oncue.rules.parsing.condition_parser import check_possible, parse_match
from oncue.rules.parsing.function_keys import (
    FunctionProperties,
)
from oncue.rules.parsing.limits_section import parse_limits
from oncue.rules.parsing.mode_section import parse_mode
from oncue.rules.parsing.names import OnNames, check_names, list_of
from oncue.rules.parsing.node_values import check_keys, is_mapping, name_of, required, time_limit, typed
from oncue.rules.parsing.outcome_pattern import rules_followed
from oncue.rules.parsing.path_check import check_relative, relative_paths
from oncue.rules.parsing.priority_section import parse_priority
from oncue.rules.parsing.retry_section import parse_retry
from oncue.rules.parsing.rule_run import RuleRun, parse_runs
from oncue.rules.parsing.test_section import fires, timed_events
from oncue.strict_yaml.document import Node, Problems, nearest, read
from oncue.strict_yaml.structs import convert
from oncue.strict_yaml.variables import check_filled

Kinds = Mapping[str, type[msgspec.Struct]]
FILE_KEYS, EXPECT_KEYS = ("triggers", "rules"), ("fires", "args", "dead")
TEST_KEYS = ("event", "events", "takes", "expect")
RULE_KEYS = (
    *("name", "description", "on", "match", "when", "run"),
    *("retry", "timeout", "priority", "affinity", "expires", "limits"),
    *("enabled", "mode", "resume", "pause_on_failures", "tests"),
)


class TriggerSpec(msgspec.Struct, frozen=True):
    name: str
    kind: str
    options: Any  # option Struct of its kind; None: kinds were not given
    line: int = 0


class RuleTest(msgspec.Struct, frozen=True):
    event: Any  # a file name beside the rule file, or the event as a mapping
    fires: bool | int  # a number: how often
    args: Any = None  # of the run, or a list for several runs; None: not checked
    line: int = 0
    events: tuple[
        tuple[int, Any], ...
    ] = ()  # (at_ms, event): several, on a virtual clock; then `args` has one entry a firing
    dead: str = ""  # a text in the reason of a dead letter; "": there is none
    takes_ms: int = 0  # from a firing to the outcomes of its tasks


class Rule(msgspec.Struct, frozen=True):
    name: str
    on: Any  # as written in the file
    conditions: tuple[Condition, ...]  # of `on`, then `match`
    when: Cel | None
    runs: tuple[RuleRun, ...]
    retry: StoredRetryPolicy | None = None
    expires_ms: int = 0
    enabled: bool = True
    tests: tuple[RuleTest, ...] = ()
    description: str = ""
    line: int = 0
    source: Any = None  # the rule as plain data, for comparing
    operators: OperatorChain | None = None
    node_hours: Rate | None = None  # that its tasks may use
    priority: int = 0  # see protocol/priority.py
    follows: tuple[str, ...] | None = None  # rules whose outcomes `on` is about; (): any; None: it is about events
    of_on: int = 0  # conditions of `on`
    mode: str = "on"  # on, shadow, paused

    @property
    def has_items(self) -> bool:
        """True if the number of its tasks depends on the event."""
        return any(run.for_each is not None for run in self.runs)


class RuleSet(msgspec.Struct, frozen=True):
    file: str
    text: str
    triggers: tuple[TriggerSpec, ...]
    rules: tuple[Rule, ...]
    program_size: int = 0  # instructions of its globs and regular expressions

    @property
    def functions(self) -> list[str]:
        """Return the functions of all rules as written, each once, without scripts."""
        return list(dict.fromkeys(run.function for rule in self.rules for run in rule.runs if run.is_own))

    @property
    def scripts(self) -> dict[str, Packed]:
        """Return the functions that oncue packs, by their names: scripts, messages."""
        runs = [run for rule in self.rules for run in rule.runs]
        return {run.function: packed for run in runs if (packed := run.packed) is not None}

    @property
    def endpoints(self) -> list[str]:
        """Return the endpoints of all rules as written, each once."""
        return list(dict.fromkeys(run.endpoint for rule in self.rules for run in rule.runs))

    def properties_of(self, function: str) -> list[FunctionProperties]:
        """Return what the runs of a function state of it, each once."""
        runs = (run for rule in self.rules for run in rule.runs if run.function == function)
        return list(dict.fromkeys(run.properties for run in runs))

    def place_of(self, function: str) -> tuple[int, int]:
        """Return line and column of the first run of a function."""
        return next(run.given.function for rule in self.rules for run in rule.runs if run.function == function)


def parse(
    text: str | bytes,
    file: str = "",
    kinds: Kinds | None = None,
    *,
    triggers: Collection[str] | None = (),
    rules: Collection[str] | None = None,
    stored: bool = False,
) -> RuleSet:
    """Parse a rule file.

    Raises one RuleFileError for all errors (strict_yaml's Problems.check).

    `kinds`: trigger kind -> option Struct (None: options are not parsed, as for deployed texts).
    `triggers`, `rules`: names in other files that `on` may use (None: any).
    `stored`: the text is in force, maybe since an older version: limits of cost do not hold.
    """
    with Problems(file, limited=not stored) as problems, metered(0 if stored else MOST_PROGRAM) as meter:
        return _rule_set(text, read(text, problems), kinds, OnNames.of(triggers, rules), problems, meter)


def parse_together(
    files: Sequence[tuple[str | bytes, str]],
    kinds: Kinds | None,
    triggers: Collection[str] | None,
    rules: Collection[str] | None = None,
) -> list[RuleSet]:
    """Parse (text, file name) pairs, which may use each other's triggers and rules.

    `triggers`, `rules`: others that they may use; None: any. Raises RuleFileError for the first
    file with errors.
    """
    roots: list[tuple[str | bytes, Node | None, Problems]] = []
    names = OnNames.of(triggers, rules)
    with contextlib.ExitStack() as stack:
        for text, file in files:
            problems = stack.enter_context(Problems(file))
            root = read(text, problems)
            roots.append((text, root, problems))
            if root is not None and isinstance(root.value, dict):
                names = names.with_those_of(root)
        meter = stack.enter_context(metered(MOST_PROGRAM))
        return [_rule_set(text, root, kinds, names, problems, meter) for text, root, problems in roots]


def _rule_set(
    text: str | bytes,
    root: Node | None,
    kinds: Kinds | None,
    others: OnNames,
    problems: Problems,
    meter: ProgramMeter,
) -> RuleSet:
    before = meter.used
    specs: list[TriggerSpec] = []
    if root is not None:
        if isinstance(root.value, dict):
            check_keys(root, FILE_KEYS, "a rule file", problems)
            if problems.limited:
                check_filled(text, root, problems)
                problems.check()  # the others may be due to it
            specs = [s for n in list_of(root, "triggers", problems) if (s := _trigger(n, kinds, problems))]
            names = others.with_those_of(root)
            relative = {s.name: relative_paths(s.options) for s in specs}
            for n in list_of(root, "rules", problems):
                if rule := _rule(n, names, relative, problems):
                    problems.made.append(rule)
            check_names(root, "triggers", problems)
            check_names(root, "rules", problems)
        else:
            problems.add(root, f"a rule file is a mapping of `triggers:` and `rules:`, not {root.kind()}")
    problems.check()
    plain = text if isinstance(text, str) else text.decode("utf-8-sig")
    return RuleSet(problems.file, plain, tuple(specs), tuple(problems.made), meter.used - before)


def rule_of(node: Node) -> Rule:
    """Compile one rule of a file that was parsed before. Raises RuleFileError."""
    problems = Problems("", limited=False)
    rule = _rule(node, OnNames.of(None, None), {}, problems)
    problems.check()
    assert rule is not None
    return rule


def check_unique(sets: Iterable[RuleSet]) -> None:
    """Raises RuleFileError, with both places, for a name that two files have."""
    seen: dict[tuple[str, str], tuple[str, int]] = {}
    for ruleset in sets:
        for what, items in (("rule", ruleset.rules), ("trigger", ruleset.triggers)):
            for item in items:
                first = seen.setdefault((what, item.name), (ruleset.file, item.line))
                if first != (ruleset.file, item.line):
                    raise RuleFileError(
                        f"the {what} {item.name!r} is in {first[0]}:{first[1]} already",
                        remedy="names are unique over all deployed files: rename one",
                        file=ruleset.file,
                        line=item.line,
                        column=1,
                    )


# ---------------------------------------------------------------- parts


def _trigger(node: Node, kinds: Kinds | None, problems: Problems) -> TriggerSpec | None:
    if not is_mapping(node, "a trigger", problems):
        return None
    name, kind = name_of(node, "a trigger", problems), required(node, "kind", "a trigger", problems)
    if not name or kind is None:
        return None
    if not isinstance(kind.value, str):
        problems.add(kind, f"`kind` is a text, not {kind.kind()}")
        return None
    if kinds is None:
        return TriggerSpec(name, kind.value, None, node.line)
    if kind.value not in kinds:
        problems.add(kind, f"there is no trigger kind {kind.value!r}", nearest(kind.value, kinds))
        return None
    options = convert(node, {"name", "kind"}, kinds[kind.value], problems, f"trigger {name}")
    return None if options is None else TriggerSpec(name, kind.value, options, node.line)


def _rule(node: Node, names: OnNames, relative: Mapping[str, frozenset[str]], problems: Problems) -> Rule | None:
    if not is_mapping(node, "a rule", problems):
        return None
    before, problems.conditions = len(problems.found), 0
    check_keys(node, (*RULE_KEYS, *CATALOGUE.members, *LIMITERS), "a rule", problems)
    name, get = name_of(node, "a rule", problems), node.value.get
    mode, pause = parse_mode(get("mode"), get("resume"), problems)
    first: list[AnyLimiter] = [*pause, *parse_failures(get("pause_on_failures"), problems)]
    operators = parse_operators(node, problems, names.parse_pattern, first)
    on, followed = _on(node, operators, problems)
    run = required(node, "run", "a rule", problems)
    of_patterns = operators.conditions if operators else ()
    conditions = names.parse_on(on, problems) if on else [*of_patterns]
    of_on = len(conditions)
    if "match" in node.value:
        conditions += parse_match(node.value["match"], problems)
        if problems.limited and len(problems.found) == before:
            check_possible(node.value["match"], problems)
        check_relative(node.value["match"], on, relative, problems)
    when = _when(get("when"), problems)
    timeout_ms = time_limit(get("timeout"), "timeout", problems)
    conditions += of_patterns if on else ()
    refer = operators.needs.refer if operators else refer_to_event
    runs = parse_runs(run, name, timeout_ms, problems, refer, get("affinity")) if run else ()
    retry = parse_retry(get("retry"), problems)
    expires_ms = time_limit(get("expires"), "expires", problems)
    node_hours = parse_limits(get("limits"), problems)
    priority = parse_priority(get("priority"), problems)
    enabled = typed(get("enabled"), bool, "enabled", True, problems)
    description = typed(get("description"), str, "description", "", problems)
    tests = _tests(get("tests"), problems)
    if len(problems.found) > before:
        return None
    return Rule(
        name,
        on.plain() if on else _heard(operators),
        tuple(conditions),
        when,
        runs,
        retry,
        expires_ms,
        enabled,
        tests,
        description,
        node.line,
        {k: v.plain() for k, v in node.value.items() if k not in ("tests", "description")},
        operators,
        node_hours,
        priority,
        followed,
        of_on,
        mode,
    )


def _on(node: Node, operators: OperatorChain | None, problems: Problems) -> tuple[Node | None, tuple[str, ...] | None]:
    """Return `on`, and the rules whose outcomes the rule is about.

    A rule whose patterns all have `on` needs none.
    """
    patterns = operators.patterns.values() if operators else ()
    if "on" in node.value or not patterns or any(pattern.on is None for pattern in patterns):
        on = required(node, "on", "a rule", problems)
        followed = rules_followed(on.plain()) if on else None
        if on and operators and problems.limited:
            for name, pattern in operators.patterns.items():
                if pattern.on is not None and (pattern.follows is None) != (followed is None):
                    what = f"`on` and the pattern {name!r}: one is about events, the other about outcomes of tasks"
                    problems.add(on, what, "nothing is both; leave `on` out, or that of the pattern")
        return on, followed
    follows = [pattern.follows for pattern in patterns if pattern.follows is not None]
    if not follows:
        return None, None
    if len(follows) < len(patterns):
        what = "the patterns of a rule are about events, or about outcomes of tasks"
        problems.add(node, f"{what}, not both", "let a rule run for the event, and wait for its outcome")
    return None, () if () in follows else tuple(dict.fromkeys(name for names in follows for name in names))


def _heard(operators: OperatorChain | None) -> dict[str, Any]:
    """Return the `on` of each pattern, as written, by the name of the operator."""
    if operators is None or operators.last is None:
        return {}
    return {operators.last.name(): {name: pattern.on for name, pattern in operators.patterns.items()}}


def _when(node: Node | None, problems: Problems) -> Cel | None:
    text = typed(node, str, "when", "", problems)
    if node is None or not isinstance(node.value, str):
        return None
    try:
        return compile_cel(text)
    except Invalid as e:
        problems.add(node, f"when: {e.message}", e.remedy)
        return None


def _tests(node: Node | None, problems: Problems) -> tuple[RuleTest, ...]:
    if node is None:
        return ()
    if not isinstance(node.value, list):
        problems.add(node, f"`tests` is a list, not {node.kind()}")
        return ()
    return tuple(test for n in node.value if (test := _test(n, problems)))


def _test(node: Node, problems: Problems) -> RuleTest | None:
    if not is_mapping(node, "a test", problems):
        return None
    check_keys(node, TEST_KEYS, "a test", problems)
    events = timed_events(node.value["events"], problems) if "events" in node.value else ()
    several = "events" in node.value
    event = node.value.get("event") if several else required(node, "event", "a test", problems)
    expect = required(node, "expect", "a test", problems)
    if several and event is not None:
        problems.add(event, "a test has `event` or `events`, not both")
    if (event is None and not events) or expect is None or not is_mapping(expect, "`expect`", problems):
        return None
    if event is not None and not isinstance(event.value, (str, dict)):
        problems.add(event, f"`event` is a file name or a mapping, not {event.kind()}")
    check_keys(expect, EXPECT_KEYS, "`expect`", problems)
    dead = typed(expect.value.get("dead"), str, "dead", "", problems)
    args = expect.value.get("args")
    plain = event.plain() if event else None
    takes_ms = duration(node.value.get("takes"), "takes", problems)
    expected = args.plain() if args else None
    return RuleTest(plain, fires(expect, problems), expected, node.line, events, dead, takes_ms)
