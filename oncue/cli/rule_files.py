"""Rule files on this machine: reading them, their functions, and their tests by the production matcher."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from oncue.errors import Invalid, NotFound, OncueError, RuleFileError
from oncue.extras import need
from oncue.protocol.api import Explanation

if TYPE_CHECKING:
    from oncue.functions import Packed
    from oncue.protocol.records import Parameter
    from oncue.rules.parsing.rule_file import RuleSet


class Tested(msgspec.Struct, frozen=True):
    """A test of a rule, with its file."""

    rule: str
    file: str
    line: int
    passed: bool
    why: str = ""


def read(paths: Sequence[str]) -> list[RuleSet]:
    """Parse the files as one deployment. Raises RuleFileError; Invalid when one cannot be read; MissingExtra."""
    need("reading rule files")
    from oncue.rules.parsing.rule_file import check_unique, parse
    from oncue.triggers.catalog import OptionStructs

    options = OptionStructs()
    texts: list[tuple[str, bytes]] = []
    for path in paths:
        try:
            texts.append((path, Path(path).read_bytes()))
        except OSError as e:
            raise Invalid(
                f"{path} cannot be read: {e.strerror}", remedy="give the path of a rule file (YAML)"
            ) from None
    names = {t.name for path, text in texts for t in parse(text, path, options, triggers=None).triggers}
    sets = [parse(text, path, options, triggers=names if len(texts) > 1 else None) for path, text in texts]
    check_unique(sets)
    return sets


def pack_functions(sets: Sequence[RuleSet]) -> dict[str, Packed]:
    """ "tomo.py:reconstruct" -> the function, from the folder of the rule file that names it; registered names are left
    out. Raises RuleFileError for one that cannot be packed, and when two files mean different functions by one name."""
    from oncue.functions import pack_file

    found: dict[str, Packed] = {}
    for ruleset, function, path, name in _own_functions(sets):
        try:
            with _printing_aside():
                packed = pack_file(path, name)
        except OncueError as e:
            raise _at(ruleset, function, f"{function}: {e.message}", e.remedy) from None
        other = found.setdefault(function, packed)
        if other.id != packed.id:
            what = f"{function} is another function beside this rule file than beside another"
            raise _at(ruleset, function, what, "deploy the files one at a time")
    return found


def _at(ruleset: RuleSet, function: str, message: str, remedy: str) -> RuleFileError:
    line, column = ruleset.place_of(function)
    return RuleFileError(message, remedy=remedy, file=ruleset.file, line=line, column=column)


def _own_functions(sets: Sequence[RuleSet]) -> Iterator[tuple[RuleSet, str, Path, str]]:
    """(rule file, function as written, its file, its name) of those that are in files beside the rule files."""
    for ruleset in sets:
        for function in ruleset.functions:
            if match := re.fullmatch(r"(.+\.py):([\w.]+)", function):
                yield ruleset, function, Path(ruleset.file).parent / match[1], match[2]


def _printing_aside() -> contextlib.AbstractContextManager[Any]:
    """What files print while they are imported is not the command's answer."""
    return contextlib.redirect_stdout(sys.stderr)


def check_packed(sets: Sequence[RuleSet], packed: Mapping[str, Packed]) -> None:
    """Whether the rules' arguments fit, before anything is sent. Raises RuleFileError."""
    from oncue.rules.parsing.argument_check import check_arguments

    for ruleset in sets:
        check_arguments(ruleset, {function: p.parameters for function, p in packed.items()})


def check_offline(sets: Sequence[RuleSet]) -> None:
    """The same for functions that are not packed: of a file that cannot be imported here its text says what it can, and
    registered names are left to the deploy. Raises RuleFileError."""
    from oncue.cli.output import say
    from oncue.functions import parameters_in_file
    from oncue.rules.parsing.argument_check import check_arguments

    known: dict[tuple[str, str], Sequence[Parameter] | None] = {}
    for ruleset, function, path, name in _own_functions(sets):
        try:
            with _printing_aside():
                known[ruleset.file, function], why = parameters_in_file(path, name)
        except OncueError as e:
            raise _at(ruleset, function, f"{function}: {e.message}", e.remedy) from None
        if why:
            say(f"{why}; its text was read instead", err=True)
    for ruleset in sets:
        check_arguments(ruleset, {f: parameters for (file, f), parameters in known.items() if file == ruleset.file})


def run_tests(sets: Sequence[RuleSet]) -> list[Tested]:
    """The `tests:` of all rules, offline."""
    from oncue.rules.testing import runner

    return [
        Tested(t.rule, ruleset.file, t.line, t.passed, t.why)
        for ruleset in sets
        for t in runner.run_tests(ruleset, Path(ruleset.file).parent)
    ]


def explain_offline(name: str, event: Any, path: str) -> Explanation:
    """By a rule file, without a server. `event`: its JSON. Raises NotFound, RuleFileError, Invalid, MissingExtra."""
    need("reading rule files")
    from oncue.rules.explain import explain
    from oncue.rules.testing.runner import read_event

    (ruleset,) = read([path])
    for rule in ruleset.rules:
        if rule.name == name:
            return explain(rule, read_event(event, Path(path).parent, rule.on))
    raise NotFound(f"{path} has no rule {name!r}", remedy=f"it has: {', '.join(r.name for r in ruleset.rules)}")


def show_tests(tests: Sequence[Tested]) -> None:
    """Failures, and a line that counts. Raises RuleFileError when one failed."""
    from oncue.cli.output import say

    bad = [t for t in tests if not t.passed]
    for t in bad:
        say(f"{t.file}:{t.line}: {t.rule}: {t.why}", err=True)
    if tests:
        say(f"{len(tests) - len(bad)} of {len(tests)} tests passed", err=True)
    if bad:
        raise RuleFileError(
            f"a test of the rule {bad[0].rule!r} failed: {bad[0].why}",
            remedy="`oncue rules explain` names each condition; nothing was deployed",
            file=bad[0].file,
            line=bad[0].line,
            column=1,
        )


def show_steps(found: Explanation) -> None:
    from oncue.cli.output import plain, say, when

    for f in found.fired:
        say(f"{found.rule} fired for this event at {when(f.at_us)}: task {f.task}, by version {f.version} of its file")
    does = f"{found.rule} {'fires' if found.fires else 'does not fire'}" + (f": {found.why}" if found.why else "")
    say(f"as it is now, {does}" if found.fired else does)
    for step in found.steps:
        say(f"  {'✓' if step.holds else '✗'} {step.condition}: found {step.found}, wanted {step.wanted}")
    if found.args is not None:
        say(f"  arguments: {plain(found.args)}")
