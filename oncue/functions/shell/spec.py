"""ShellSpec: the part of a function's body that makes it a shell function."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from oncue.errors import Invalid
from oncue.functions.shell.readers import CODE_VARIABLES, ScriptError
from oncue.functions.shell.script import in_text, with_variables

VALUE_BYTES = 100_000  # of one value: Linux takes 128 KiB of one variable
INTERPRETERS = ("sh", "bash", "dash", "ash", "ksh", "zsh")
ENVIRONMENT = 1_000  # variables of `env`


class ShellSpec(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Script of a shell function, and in what it runs.

    Script, `env` and `cwd` may have `${name}`: a value that the call gives.
    """

    script: str
    env: dict[str, str] = msgspec.field(default_factory=dict)
    cwd: str = ""  # "": the sandbox, else the endpoint's working directory
    interpreter: str = ""  # "": bash where there is one, else sh


class Command(msgspec.Struct, frozen=True):
    """A script with its values."""

    script: str
    env: dict[str, str]
    cwd: str


def check_spec(spec: ShellSpec, names: Collection[str]) -> set[str]:
    """Return the names that script, env and cwd use. Raises Invalid."""
    if not spec.script.strip():
        raise Invalid("the shell script is empty", remedy='for example "wc -l ${path}"')
    if len(spec.env) > ENVIRONMENT:
        raise Invalid(f"env has {len(spec.env):,} variables; at most {ENVIRONMENT:,}", remedy="put them in a file")
    for name, value in spec.env.items():
        if not name or "=" in name or "\0" in name + value:
            raise Invalid(f"{name!r} is not a variable of an environment", remedy="names are like OMP_NUM_THREADS")
    words = _words(spec.interpreter)
    if words and _shell(words) not in INTERPRETERS:
        raise Invalid(
            f"the interpreter {spec.interpreter!r} is no shell that oncue knows",
            remedy=f"one of {', '.join(INTERPRETERS)}; run another program from the script",
        )
    try:
        used = set(with_variables(spec.script, names, _shell(words))[1])
    except ScriptError as e:
        raise Invalid(f"shell: {e}", remedy=e.remedy) from None

    def use(name: str) -> str:
        used.add(name)
        return ""

    for text in (spec.cwd, *spec.env.values()):
        in_text(text, use, names)
    for name in CODE_VARIABLES & set(spec.env):
        if in_text(spec.env[name], lambda _: "\0", names) != in_text(spec.env[name], lambda _: "", names):
            raise Invalid(f"env: a shell evaluates the value of {name}", remedy="give it a fixed value")
    return used


def _shell(words: list[str]) -> str:
    return os.path.basename(words[0]) if words else ""


def _words(interpreter: str) -> list[str]:
    try:
        return shlex.split(interpreter)
    except ValueError as e:
        raise Invalid(f"interpreter: {e}: {interpreter!r}", remedy="for example /bin/bash -l") from None


def command_of(spec: ShellSpec, values: Mapping[str, Any]) -> Command:
    """Return what is run for these values. Raises Invalid."""
    texts = {name: value_text(name, value) for name, value in values.items()}
    try:
        script, variables = with_variables(spec.script, texts, _shell(_words(spec.interpreter)))
    except ScriptError as e:
        raise Invalid(f"shell: {e}", remedy=e.remedy) from None
    env = {name: in_text(text, texts.__getitem__, texts) for name, text in spec.env.items()}
    env |= {variable: texts[name] for name, variable in variables.items()}
    return Command(script, env, in_text(spec.cwd, texts.__getitem__, texts))


def value_text(name: str, value: Any) -> str:
    """Return a value as the text that a command gets. Raises Invalid.

    Texts and paths as they are, other plain data as JSON.
    """
    try:
        text = _text(value)
    except (TypeError, ValueError, msgspec.MsgspecError):
        raise Invalid(
            f"the value of ${{{name}}} is a {type(value).__name__}, which a command cannot get",
            remedy="give a text, a number, a path, or plain data",
        ) from None
    if "\0" in text:
        raise Invalid(f"the value of ${{{name}}} has a NUL character", remedy="write it to a file, and give its path")
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > VALUE_BYTES:
        raise Invalid(
            f"the value of ${{{name}}} has {size:,} bytes; a command takes {VALUE_BYTES:,} of one",
            remedy="write it to a file, and give its path",
        )
    return text


def _text(value: Any) -> str:
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return msgspec.json.encode(value).decode()
