"""Values of `--set` and `--env` for the variables of rule files."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from oncue.cli import completers
from oncue.cli.client import arguments
from oncue.errors import Invalid, RuleFileError
from oncue.strict_yaml.document import FileKind, Problems, read
from oncue.strict_yaml.variables import NAME, fill, flat

F = TypeVar("F", bound=Callable[..., Any])
ENV_FILE = FileKind(
    RuleFileError, "files of values", "it has a line `name: value` for each variable", "make it smaller"
)


class Values(msgspec.Struct):
    """Values by name, and the names that the files have used."""

    values: dict[str, Any] = msgspec.field(default_factory=dict)
    stated: frozenset[str] = frozenset()  # by --set
    used: set[str] = msgspec.field(default_factory=set)

    def filled(self, text: bytes, path: str) -> str | bytes:
        """Return the text of a rule file with its values. Raises RuleFileError."""
        try:
            decoded = text.decode("utf-8-sig")
        except UnicodeDecodeError:
            return text  # the parser reports it
        problems = Problems(path)
        made, used = fill(decoded, self.values, problems)
        problems.check()
        self.used |= used
        return made

    def check_used(self) -> None:
        """Raise Invalid for a name of --set that no file uses: it may be misspelt."""
        if unused := sorted(self.stated - self.used):
            near = difflib.get_close_matches(unused[0], self.used, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else f"write ${{var:{unused[0]}}} where it is to stand"
            raise Invalid(f"no file uses the variable {unused[0]!r} of --set", remedy=remedy)


def values_of(stated: tuple[str, ...], files: tuple[str, ...]) -> Values:
    """Return the values of --set and --env. Raises Invalid, RuleFileError."""
    values: dict[str, Any] = {}
    for file in files:
        values |= flat(_read(file))
    given = arguments(stated, "--set", NAME)
    return Values(values | given, frozenset(given))


def _read(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_bytes()
    except OSError as e:
        raise Invalid(f"{path} cannot be read: {e.strerror}", remedy="give a YAML file of values") from None
    problems = Problems(path, kind=ENV_FILE)
    root = read(text, problems)
    if root is not None and not isinstance(root.value, dict):
        problems.add(root, f"a file of values is a mapping of names, not {root.kind()}")
    problems.check()
    assert root is not None
    return dict(root.plain())


def values_options(f: F) -> F:
    """Add --set and --env to a command, as `set_` and `env`."""
    env = click.option(
        "--env",
        multiple=True,
        metavar="FILE",
        shell_complete=completers.files,
        help="YAML file of values for ${var:NAME}; several: the last one wins.",
    )
    stated = click.option(
        "--set",
        "set_",
        multiple=True,
        metavar="NAME=VALUE",
        help="Value of ${var:NAME}; NAME:=JSON for a number or list.",
    )
    return stated(env(f))
