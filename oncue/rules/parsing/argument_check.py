"""Checks that the `args` of rules fit their functions.

Used by deploy and `oncue rules test`. A function is known by its parameters
(functions/signature.py), as read by the client that packed it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from oncue.protocol.records import Parameter
from oncue.rules.parsing.rule_file import RuleSet
from oncue.rules.parsing.rule_run import SourcePositions
from oncue.strict_yaml.document import Problems, nearest

Known = Mapping[str, Sequence[Parameter] | None]
_BY_NAME = ("positional_or_keyword", "keyword_only")
_BY_PLACE = ("positional_only", "positional_or_keyword")


def check_arguments(rules: RuleSet, known: Known) -> None:
    """Check the arguments of all runs. Raises one RuleFileError for all misfits.

    `known`: function as written in the file -> its parameters; others are not checked.
    """
    problems = Problems(rules.file)
    for rule in rules.rules:
        for run in rule.runs:
            parameters = known.get(run.function)
            if parameters is not None:
                _check(run.given, parameters, f"{run.function.rpartition(':')[2]}()", problems)
    problems.check()


def _check(given: SourcePositions, parameters: Sequence[Parameter], function: str, problems: Problems) -> None:
    meant = _check_names(given, parameters, function, problems)
    places = [p.name for p in parameters if p.kind in _BY_PLACE]
    if len(given.items) > len(places) and not _has(parameters, "var_positional"):
        remedy = f"its parameters by place: {', '.join(places)}" if places else "it takes none by place: name them"
        problems.add(
            given.items[len(places)],
            f"args: {function} takes {_count(len(places))} by place, and {len(given.items)} are given",
            remedy,
        )
    filled = {
        *places[: len(given.items)],
        *(p.name for p in parameters if p.kind in _BY_NAME and p.name in given.names),
    }
    for p in parameters:
        if p.required and p.name not in filled | meant:
            problems.add(given.place, f"args: {function} needs {p.name!r}", _how(p, bool(given.items), places))


def _how(p: Parameter, is_list: bool, places: Sequence[str]) -> str:
    if is_list and p.kind == "keyword_only":
        return f"write `args` as a mapping: {{{p.name}: ...}}"
    if is_list or p.kind == "positional_only":
        return f"write `args` as a list of {', '.join(places)}"
    return f"add it to `args`: {p.name}: ..."


def _check_names(
    given: SourcePositions, parameters: Sequence[Parameter], function: str, problems: Problems
) -> set[str]:
    """Check the names; return the parameters that misspelt names mean.

    A parameter that is misspelt is not reported as missing too.
    """
    meant: set[str] = set()
    known = [p.name for p in parameters if p.kind in _BY_NAME]
    unused = [name for name in known if name not in given.names]
    for name, place in given.names.items():
        if name in known or _has(parameters, "var_keyword"):
            continue
        if any(p.name == name and p.kind == "positional_only" for p in parameters):
            problems.add(place, f"args: {function} takes {name!r} by place only", "write `args` as a list")
            meant.add(name)
        else:
            remedy = nearest(name, unused or known)
            problems.add(place, f"args: {function} has no parameter {name!r}", remedy)
            meant.update(p for p in unused if remedy == f"did you mean {p!r}?")
    return meant


def _has(parameters: Sequence[Parameter], kind: str) -> bool:
    return any(p.kind == kind for p in parameters)


def _count(number: int) -> str:
    return f"{number} argument" + ("" if number == 1 else "s")
