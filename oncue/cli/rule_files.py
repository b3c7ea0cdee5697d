"""Rule files on this machine: reads, packs their functions, runs their tests."""

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
from oncue.processes.garbage_collection import collect_seldom
from oncue.protocol.api import Explanation

if TYPE_CHECKING:
    from oncue.cli.deploying.values import Values
    from oncue.functions import Packed
    from oncue.functions.options import FunctionOptions
    from oncue.protocol.records import Parameter
    from oncue.rules.parsing.rule_file import RuleSet

_ONE_BY_ONE = "deploy the files one at a time"
_NONE: Mapping[tuple[str, str], str] = {}


class FileTestResult(msgspec.Struct, frozen=True):
    """The result of one test in a rule file."""

    rule: str
    file: str
    line: int
    passed: bool
    why: str = ""


def read(paths: Sequence[str], values: Values | None = None) -> list[RuleSet]:
    """Parse the files as one deployment. `values`: of their variables.

    Raises RuleFileError, Invalid if a file cannot be read, MissingExtra.
    """
    need("reading rule files")
    collect_seldom()
    from oncue.cli.deploying.python_rules import written_lines
    from oncue.rules.parsing.rule_file import check_unique, parse, parse_together
    from oncue.triggers.catalog import OptionStructs

    options = OptionStructs()
    texts = [(path, text_of(path, values)) for path in paths]
    if values is not None:
        values.check_used()
    with written_lines():
        if len(texts) > 1:
            sets = parse_together([(text, path) for path, text in texts], options, ())
        else:
            sets = [parse(text, path, options, triggers=None) for path, text in texts]
        check_unique(sets)
    return sets


def text_of(path: str, values: Values | None) -> str | bytes:
    """Return the text of a rule file in YAML or Python, with its values.

    Raises Invalid if it cannot be read, RuleFileError, CannotImport.
    """
    from oncue.cli.deploying.python_rules import is_python, rule_text, written_lines

    try:
        with _printing_aside():
            text = rule_text(path) if is_python(path) else Path(path).read_bytes()
    except OSError as e:
        remedy = "give the path of a rule file (YAML, or Python)"
        raise Invalid(f"{path} cannot be read: {e.strerror}", remedy=remedy) from None
    with written_lines():
        return text if values is None else values.filled(text, path)


def pack_functions(sets: Sequence[RuleSet], locked: Mapping[tuple[str, str], str] = _NONE) -> dict[str, Packed]:
    """Pack the functions in Python files beside the rules.

    `locked`: hashes of those that are not there, by rule file and name.
    Returns {"tomo.py:reconstruct": packed function}. Names of registered functions are left out.
    Raises RuleFileError if a function cannot be packed, or if two rule files have different
    functions under one name.
    """
    from oncue.functions import pack_file

    packed_by_name: dict[str, Packed] = {}
    contents = {name: content for (_, name), content in locked.items()}
    for ruleset, function, path, name in _own_functions(sets):
        if (ruleset.file, function) in locked:
            if contents[function] != locked[ruleset.file, function] or function in packed_by_name:
                raise _at(ruleset, function, f"{function} is another function in another file", _ONE_BY_ONE)
            continue
        try:
            with _printing_aside():
                packed = pack_file(path, name, _options(ruleset, function))
        except OncueError as e:
            raise _at(ruleset, function, f"{function}: {e.message}", e.remedy) from None
        other = packed_by_name.setdefault(function, packed)
        if contents.get(function, packed.id) != packed.id or other.id != packed.id:
            what = f"{function} is a different function for this rule file than for another one"
            raise _at(ruleset, function, what, _ONE_BY_ONE)
    return packed_by_name


def _options(ruleset: RuleSet, function: str) -> FunctionOptions:
    """Return the options that the runs of a function state together."""
    from oncue.functions.options import FunctionOptions

    found = FunctionOptions()
    for stated in ruleset.properties_of(function):
        found = found.merged(FunctionOptions(stated.fresh, stated.memory_bytes, stated.detached, stated.files))
    return found


def _at(ruleset: RuleSet, function: str, message: str, remedy: str) -> RuleFileError:
    """Return an error at the function's first use in the rule file."""
    line, column = ruleset.place_of(function)
    return RuleFileError(message, remedy=remedy, file=ruleset.file, line=line, column=column)


def _own_functions(sets: Sequence[RuleSet]) -> Iterator[tuple[RuleSet, str, Path, str]]:
    """Yield the functions in Python files beside the rules.

    Each is (rule file, function as written, Python file, name).
    """
    for ruleset in sets:
        for function in ruleset.functions:
            if match := re.fullmatch(r"(.+\.py):([\w.]+)", function):
                yield ruleset, function, Path(ruleset.file).parent / match[1], match[2]


def _printing_aside() -> contextlib.AbstractContextManager[Any]:
    """Redirect output of imported files to stderr; stdout is the command's."""
    return contextlib.redirect_stdout(sys.stderr)


def check_packed(sets: Sequence[RuleSet], packed: Mapping[str, Packed]) -> None:
    """Check the rules' arguments against the functions. Raises RuleFileError."""
    from oncue.rules.parsing.argument_check import check_arguments

    for ruleset in sets:
        check_arguments(ruleset, {function: p.parameters for function, p in packed.items()})


def check_offline(sets: Sequence[RuleSet]) -> None:
    """Check the rules' arguments without packing the functions.

    Raises RuleFileError.

    If a file cannot be imported here, its source is parsed instead. Functions that are used by a
    registered name are checked by the deploy.
    """
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
            say(f"{why}; its source was parsed instead", err=True)
    for ruleset in sets:
        check_arguments(ruleset, {f: parameters for (file, f), parameters in known.items() if file == ruleset.file})


def warn_offline(sets: Sequence[RuleSet]) -> None:
    """Print warnings about the rules, as far as these files alone show them."""
    from oncue.cli.rule_state import show_warnings
    from oncue.rules.parsing.plausibility import implausible

    triggers = {t.name: t.options for s in sets for t in s.triggers}
    for ruleset in sets:
        show_warnings(ruleset.file, implausible(ruleset, triggers, ()))


def run_tests(sets: Sequence[RuleSet]) -> list[FileTestResult]:
    """Run the `tests:` of all rules, without a server."""
    from oncue.cli.deploying.python_rules import with_lines
    from oncue.rules.testing import runner

    return with_lines(
        [
            FileTestResult(t.rule, ruleset.file, t.line, t.passed, t.why)
            for ruleset in sets
            for t in runner.run_tests(ruleset, Path(ruleset.file).parent)
        ]
    )


def explain_offline(name: str, event: Any, path: str) -> Explanation:
    """Explain a rule for an event (JSON) by a rule file, without a server.

    Raises NotFound, RuleFileError, Invalid, MissingExtra.
    """
    need("reading rule files")
    from oncue.rules.explain import explain
    from oncue.rules.testing.runner import read_event

    (ruleset,) = read([path])
    for rule in ruleset.rules:
        if rule.name == name:
            return explain(rule, read_event(event, Path(path).parent, rule.on))
    raise NotFound(f"{path} has no rule {name!r}", remedy=f"it has: {', '.join(r.name for r in ruleset.rules)}")


def show_tests(tests: Sequence[FileTestResult]) -> None:
    """Print failures and the number of passed tests.

    Raises RuleFileError if a test failed.
    """
    from oncue.cli.output import say

    failed = [t for t in tests if not t.passed]
    for t in failed:
        say(f"{t.file}:{t.line}: {t.rule}: {t.why}", err=True)
    if tests:
        say(f"{len(tests) - len(failed)} of {len(tests)} tests passed", err=True)
    if failed:
        raise RuleFileError(
            f"a test of the rule {failed[0].rule!r} failed: {failed[0].why}",
            remedy="`oncue rules explain` names each condition; nothing was deployed",
            file=failed[0].file,
            line=failed[0].line,
            column=1,
        )


def show_steps(explanation: Explanation) -> None:
    """Print why a rule fires for an event, or does not, with each condition."""
    from oncue.cli.output import plain, say, when

    rule = explanation.rule
    for f in explanation.fired:
        say(f"{rule} fired for this event at {when(f.at_us)}: task {f.task}, by version {f.version} of its file")
    verb = "fires" if explanation.fires else "does not fire"
    line = f"{rule} {verb}" + (f": {explanation.why}" if explanation.why else "")
    say(f"as it is now, {line}" if explanation.fired else line)
    for step in explanation.steps:
        say(f"  {'✓' if step.holds else '✗'} {step.condition}: found {step.found}, wanted {step.wanted}")
    if explanation.args is not None:
        say(f"  arguments: {plain(explanation.args)}")
