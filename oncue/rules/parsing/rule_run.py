"""Parses `run` of a rule: the functions, and how their tasks are run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from oncue.functions.body import Packed
from oncue.functions.notify.pack import pack_notify
from oncue.functions.shell.pack import pack_shell
from oncue.functions.shell.spec import ShellSpec
from oncue.protocol.run_options import RunOptions
from oncue.protocol.stated_options import rendered_affinity
from oncue.rules.matching.filters import as_text
from oncue.rules.matching.item_list import ItemList, check_number, parse_for_each, refer_to_item
from oncue.rules.matching.template import Refer, Template, compile_args
from oncue.rules.parsing.function_keys import (
    FUNCTION_KEYS,
    NO_PROPERTIES,
    FunctionProperties,
    function_properties,
)
from oncue.rules.parsing.node_values import check_keys, is_mapping, required, time_limit, typed
from oncue.rules.parsing.notify_run import NOTIFY, parse_notify
from oncue.rules.parsing.shell_run import MPI, OPTION_KEYS, SCRIPT_KEYS, SHELL_KEYS, parse_options, parse_shell
from oncue.strict_yaml.document import Node, Problems

RUN_KEYS = (
    "function",
    *SCRIPT_KEYS,
    NOTIFY,
    "endpoint",
    "args",
    "timeout",
    "affinity",
    "for_each",
    *SHELL_KEYS,
    *OPTION_KEYS,
    *FUNCTION_KEYS,
)
MAX_RUNS = 100


class SourcePositions(msgspec.Struct, frozen=True):
    """Positions (line, column) of the parts of a run, for argument_check.py."""

    place: tuple[int, int]  # of `args`, or of the function if there are none
    items: tuple[tuple[int, int], ...] = ()  # positional ones
    names: Mapping[str, tuple[int, int]] = {}  # keyword arguments
    function: tuple[int, int] = (0, 0)  # of the function
    endpoint: tuple[int, int] = (0, 0)  # of the endpoint, or of the run without one


class RuleRun(msgspec.Struct, frozen=True):
    """One function that a rule runs."""

    function: str  # "tomo.py:reconstruct", or the name of a registered one
    endpoint: str
    args: Template  # of a mapping (keyword arguments) or a list (positional ones)
    timeout_ms: int
    given: SourcePositions
    properties: FunctionProperties = NO_PROPERTIES
    shell: ShellSpec | None = None  # of a script; `function` is a name that oncue gives it
    options: RunOptions | None = None
    affinity: Template | None = None
    mpi: bool = False  # the script runs in each rank
    for_each: ItemList | None = None  # a task for each item; None: one task
    notifies: bool = False  # it sends a message; `function` is a name that oncue gives it

    @property
    def packed(self) -> Packed | None:
        """Its function, if oncue packs it; None: it is the user's."""
        if self.notifies:
            return pack_notify(self.function)
        return None if self.shell is None else pack_shell(self.shell, None, self.function, mpi=self.mpi)

    @property
    def is_own(self) -> bool:
        """True if its function is the user's: no script, and no message."""
        return self.shell is None and not self.notifies

    @property
    def templates(self) -> tuple[Template, ...]:
        """Templates of arguments and affinity key."""
        return (self.args,) if self.affinity is None else (self.args, self.affinity)

    def render(self, source: Any) -> Any:
        """Return the arguments for one of `task_sources`.

        Raises Invalid, also for the affinity key.
        """
        self.affinity_key(source)
        return self.args.render(source)

    def affinity_key(self, source: Any) -> str:
        """Return the affinity key for one of `task_sources`; "": none.

        Raises Invalid.
        """
        value = None if self.affinity is None else self.affinity.render(source)
        return "" if value is None else rendered_affinity(as_text(value))


def task_sources(runs: Sequence[RuleRun], source: Any) -> list[tuple[int, Any]]:
    """Return (index of the run, source of the arguments) of each task of a firing.

    `source`: an Event, or EventRows of a stateful rule. Raises Invalid.
    """
    found: list[tuple[int, Any]] = []
    for index, run in enumerate(runs):
        if run.for_each is None:
            found.append((index, source))
        else:
            found += [(index, item) for item in run.for_each.items(source)]
            check_number(len(found), run.for_each.text)
    return found


def parse_runs(
    node: Node, rule: str, timeout_ms: int, problems: Problems, refer: Refer, affinity: Node | None = None
) -> tuple[RuleRun, ...]:
    """Parse `run`. `timeout_ms`, `affinity`: the rule's, for runs that state none."""
    nodes = node.value if isinstance(node.value, list) else [node]
    if not 0 < len(nodes) <= MAX_RUNS:
        problems.add(node, f"`run` has {len(nodes)} functions; it takes 1 to {MAX_RUNS}")
        return ()
    names = [rule if i == 0 else f"{rule}-{i + 1}" for i in range(len(nodes))]  # of what has no function's
    return tuple(
        run
        for n, name in zip(nodes, names, strict=True)
        if (run := _run(n, name, timeout_ms, problems, refer, affinity))
    )


def _run(
    node: Node, name: str, timeout_ms: int, problems: Problems, refer: Refer, shared_affinity: Node | None
) -> RuleRun | None:
    if not is_mapping(node, "`run`", problems):
        return None
    before = len(problems.found)
    check_keys(node, RUN_KEYS, "`run`", problems)
    if len(problems.found) > before and not {"function", *SCRIPT_KEYS, NOTIFY} & node.value.keys():
        return None  # misspelt
    if "timeout" in node.value:
        timeout_ms = time_limit(node.value["timeout"], "timeout", problems)
    for_each = None
    if "for_each" in node.value:
        for_each = parse_for_each(node.value["for_each"], problems, refer)
        refer = refer_to_item(refer)
    affinity = _affinity(node.value.get("affinity", shared_affinity), problems, refer)
    endpoint = typed(node.value.get("endpoint"), str, "endpoint", "local", problems)
    made = partial(RuleRun, endpoint=endpoint, timeout_ms=timeout_ms, affinity=affinity, for_each=for_each)
    if NOTIFY in node.value:
        message = parse_notify(node, problems, refer)
        given = _given(Node({}, node.line, node.column), node.value[NOTIFY], node.value.get("endpoint", node))
        return None if message is None else made(f"{name}.{NOTIFY}", args=message, given=given, notifies=True)
    kind = next((key for key in SCRIPT_KEYS if node.value.get(key)), "")
    if kind:
        name = f"{name}.sh"
        script, shell = node.value[kind], parse_shell(node, kind, name, problems, refer)
        if shell is None:
            return None
        given = _given(Node({}, script.line, script.column), script, node.value.get("endpoint", node))
        return made(name, args=shell.values, given=given, shell=shell.spec, options=shell.options, mpi=kind == MPI)
    return _function(node, made, problems, refer)


def _function(node: Node, made: Callable[..., RuleRun], problems: Problems, refer: Refer) -> RuleRun:
    """Parse a run of the user's function. `made`: makes the run."""
    for key in SHELL_KEYS:
        if key in node.value:
            problems.add(node.at_key(key), f"`{key}` is for `shell` and `mpi`", "a function sets it itself")
    found = required(node, "function", "`run`", problems)
    function = typed(found, str, "function", "", problems)
    if found is not None and isinstance(found.value, str) and not function.strip():
        problems.add(found, "`function` is empty", "file.py:name, or the name of a registered function")
    place = found or node
    args = node.value.get("args") or Node({}, place.line, place.column)
    if not isinstance(args.value, (dict, list)):
        problems.add(args, f"`args` is a mapping or a list, not {args.kind()}")
    template = compile_args(args, problems, refer=refer)
    given = _given(args, place, node.value.get("endpoint", node))
    properties, options = function_properties(node, function, problems), parse_options(node, problems)
    return made(function, args=template, given=given, properties=properties, options=options)


def _given(args: Node, function: Node, endpoint: Node) -> SourcePositions:
    items = args.value if isinstance(args.value, list) else []
    return SourcePositions(
        (args.line, args.column),
        tuple((n.line, n.column) for n in items),
        dict(args.keys),
        (function.line, function.column),
        (endpoint.line, endpoint.column),
    )


def _affinity(node: Node | None, problems: Problems, refer: Refer) -> Template | None:
    """Parse `affinity`: a text with ${...}."""
    if node is None:
        return None
    if not isinstance(node.value, str):
        problems.add(node, f"`affinity` is a text, not {node.kind()}", 'for example "${data.sample}"')
        return None
    return compile_args(node, problems, "affinity", refer)
