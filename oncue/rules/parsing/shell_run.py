"""Parses the shell scripts and run options of a rule's `run`."""

from __future__ import annotations

import re
from collections.abc import Collection

import msgspec

from oncue.errors import Invalid
from oncue.functions.shell.spec import ShellSpec, check_spec
from oncue.protocol.run_options import RunOptions
from oncue.protocol.stated_options import run_options
from oncue.rules.matching.fields import ATTRIBUTES
from oncue.rules.matching.template import Refer, Template, compile_args, split
from oncue.rules.parsing.function_keys import FUNCTION_KEYS
from oncue.rules.parsing.node_values import is_mapping, typed
from oncue.strict_yaml.document import Node, Problems

SHELL, MPI = SCRIPT_KEYS = ("shell", "mpi")
SHELL_KEYS = ("env", "cwd", "interpreter")
OPTION_KEYS = ("resources", "sandbox", "outputs")
_WORDS = frozenset(("data", "event", "count", "key", *ATTRIBUTES))
_SHELLS_OWN = "for a variable of the shell write $NAME or $${NAME}"


class ShellRun(msgspec.Struct, frozen=True):
    """A script that a rule runs, and the values that it gets."""

    name: str  # of its function
    spec: ShellSpec
    values: Template
    options: RunOptions | None


def parse_shell(node: Node, kind: str, name: str, problems: Problems, refer: Refer) -> ShellRun | None:
    """Parse a `run` with a script: `kind` is SHELL or MPI."""
    before, get = len(problems.found), node.value.get
    script = typed(get(kind), str, kind, "", problems)
    spec = ShellSpec(
        script,
        _env(get("env"), problems),
        typed(get("cwd"), str, "cwd", "", problems),
        typed(get("interpreter"), str, "interpreter", "", problems),
    )
    options = parse_options(node, problems, in_cwd=bool(spec.cwd))
    if spec.cwd and options is not None and options.sandbox:
        problems.add(get("cwd"), "a sandbox is the working directory", "leave `cwd` or `sandbox` out")
    for key in ("args", "function", *SCRIPT_KEYS[1:], *FUNCTION_KEYS):
        if get(key) is not None and key != kind:
            remedy = "values stand in the script: ${data.path}" if key == "args" else "it is for a function"
            problems.add(get(key), f"`run` has `{kind}` and `{key}`", remedy)
    if len(problems.found) > before:
        return None
    values = _values(spec, kind, node, problems, refer)
    return None if len(problems.found) > before else ShellRun(name, spec, values, options)


def parse_options(node: Node, problems: Problems, *, in_cwd: bool = False) -> RunOptions | None:
    """Parse `resources`, `sandbox` and `outputs`."""
    given = {key: node.value[key] for key in OPTION_KEYS if key in node.value}
    plain = {key: found.plain() for key, found in given.items()}
    try:
        return run_options(plain.get("resources"), plain.get("sandbox", False), plain.get("outputs", ()), in_cwd=in_cwd)
    except Invalid as e:
        key = e.message.partition(":")[0]
        problems.add(given.get(key, node), e.message, e.remedy)
        return None


def _env(node: Node | None, problems: Problems) -> dict[str, str]:
    if node is None or not is_mapping(node, "`env`", problems):
        return {}
    found: dict[str, str] = {}
    for name, value in node.value.items():
        if isinstance(value.value, bool | int | float | str):
            plain = value.value
            found[str(name)] = plain if isinstance(plain, str) else msgspec.json.encode(plain).decode()
        else:
            problems.add(value, f"env: {name} is a text or a number, not {value.kind()}")
    return found


def _values(spec: ShellSpec, kind: str, node: Node, problems: Problems, refer: Refer) -> Template:
    """Compile the references of script, env and cwd; check where they stand."""
    places = {kind: [spec.script], "env": [*spec.env.values()], "cwd": [spec.cwd]}
    names: dict[str, Node] = {}
    words = (*_WORDS, "item") if "for_each" in node.value else _WORDS
    for key, texts in places.items():
        at = node.value.get(key, node)
        for text in texts:
            try:
                found = [piece[0] for piece in split(text) if isinstance(piece, tuple)]
            except ValueError as e:
                problems.add(at, f"{key}: {e}")
                continue
            for name in found:
                if name not in names and _is_known(name, at, key, problems, refer, words):
                    names[name] = Node(f"${{{name}}}", at.line, at.column)
    try:
        check_spec(spec, names)
    except Invalid as e:
        problems.add(node.value[kind], e.message, e.remedy)
    return compile_args(Node(names, node.line, node.column), problems, kind, refer)


def _is_known(name: str, at: Node, key: str, problems: Problems, refer: Refer, words: Collection[str]) -> bool:
    """Return True if a name refers to an event; else it is a problem."""
    word = name.partition("|")[0].strip()
    if re.fullmatch(r"[A-Za-z_]\w*", word) and word not in words:
        problems.add(at, f"{key}: an event has no {word!r}", f"{_SHELLS_OWN}; an extension is ${{event.{word}}}")
        return False
    try:
        refer(name, key)
    except ValueError as e:
        problems.add(at, f"{key}: ${{{name}}}: {e}", _SHELLS_OWN)
        return False
    return True
