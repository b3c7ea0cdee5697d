"""docs/cli.md names every command and exit code, as they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from oncue import cli, errors
from oncue.cli.completers import STATES
from oncue.cli.root import root
from oncue.view.lists import WORDS

PAGE = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()
ROW = re.compile(r"^\| `(oncue[^`]*)` \| ([^|]*) \| ?([^|]*)\|$", re.MULTILINE)
CODE = re.compile(r"^\| (\d+) \|", re.MULTILINE)
LOST = 120  # of the interpreter: a last write failed


def commands(command: click.Command = root, name: str = "oncue") -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield name, command
        return
    context = click.Context(command)
    for sub in command.list_commands(context):
        found = command.get_command(context, sub)
        assert found is not None
        yield from commands(found, f"{name} {sub}")


def test_every_command_has_a_row_that_says_what_it_prints() -> None:
    rows = {name: (text.strip(), as_json.strip()) for name, text, as_json in ROW.findall(PAGE)}
    assert not [name for name, _ in commands() if not rows.get(name, ("", ""))[0]]
    for name, command in commands():
        has_json = any(p.name == "json_" for p in command.params)
        assert bool(rows[name][1]) == has_json, name


def test_the_exit_codes_are_those_of_the_errors() -> None:
    def below(error: type[errors.OncueError]) -> Iterator[type[errors.OncueError]]:
        yield error
        for sub in error.__subclasses__():
            yield from below(sub)

    codes = {error.exit_code for error in below(errors.OncueError)}
    codes |= {0, cli.FAILED, cli.USAGE, cli.INTERRUPTED, cli.CLOSED_PIPE, LOST}
    assert {int(code) for code in CODE.findall(PAGE)} == codes


def test_the_states_are_those_of_the_view() -> None:
    assert set(STATES) == set(WORDS)
    assert not [state for state in STATES if f"`{state}`" not in PAGE]


def test_every_option_of_a_shown_command_exists() -> None:
    """The page's commands are run by tests/e2e/test_docs.py; here the options in its text are looked up."""
    known = {option for _, command in commands() for p in command.params for option in (*p.opts, *p.secondary_opts)}
    assert not [option for option in re.findall(r"`(--[\w-]+)", PAGE) if option not in known]
