"""Options that select tasks, and the hint that a list has more than is shown."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from oncue.cli import completers
from oncue.cli.completers import STATES
from oncue.cli.output import say
from oncue.cli.times import FORMS, Time
from oncue.errors import Invalid, NotFound
from oncue.protocol.api import EventCount, TaskCount

F = TypeVar("F", bound=Callable[..., Any])


class State(click.ParamType):
    """Type of `--state`: states with commas. The beginning of one is enough."""

    name = "state"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return ",".join(self._one(word.strip()) for word in str(value).split(",") if word.strip())

    def _one(self, word: str) -> str:
        wanted = word.lower().replace("-", "_")
        found = [s for s in STATES if s == wanted] or [s for s in STATES if s.startswith(wanted)]
        if len(found) != 1:
            said = f"--state {word} means {' or '.join(found)}" if found else f"there is no state {word!r}"
            raise Invalid(said, remedy=f"the states are {', '.join(STATES)}; the beginning of one is enough")
        return found[0]


since_option = click.option(
    "--since", "since_us", type=Time(), default=0, metavar="TIME", help=f"Only from this time on: {FORMS}."
)
until_option = click.option(
    "--until", "until_us", type=Time(), default=0, metavar="TIME", help="Only before this time."
)
endpoint_option = click.option(
    "--endpoint", default="", shell_complete=completers.endpoints, help="Only tasks of this endpoint."
)
rule_option = click.option("--rule", default="", shell_complete=completers.rules, help="Only tasks of this rule.")
_states = "Only tasks in these states: open, closed, waiting, running, succeeded, failed ..."
_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--state", type=State(), default="", metavar="STATE[,STATE...]", shell_complete=completers.states, help=_states
    ),
    endpoint_option,
    click.option("--function", default="", shell_complete=completers.functions, help="Only tasks of this function."),
    rule_option,
    click.option("--owner", default="", help="Only tasks of this person (for admins)."),
    since_option,
    until_option,
)


def filter_options(f: F) -> F:
    """Add the options that select tasks, which the command takes as keywords."""
    for option in reversed(_OPTIONS):
        f = option(f)
    return f


cursor_option = click.option("--cursor", default="", metavar="CURSOR", help="Go on where a list ended: it says how.")


def tell_more(shown: int, total: str, following: str | None, what: str, json_: bool) -> None:
    """Print to stderr how many there are, and how to list the next ones.

    A script gets this only with a text that was cut.
    """
    if following is None:
        if shown and not json_ and sys.stdout.isatty():
            say(f"{shown:,} {what if shown > 1 else what.removesuffix('s')}", err=True)
    elif not json_ or sys.stderr.isatty():
        number = f"{shown:,} of {total} {what}" if total else f"{shown:,} {what}, and there are more"
        say(f"{number}. The next: {_words_without_cursor()} --cursor {following}", err=True)


def _words_without_cursor() -> str:
    """Return the command as it was given, without its cursor."""
    context = click.get_current_context()
    root = context.find_root()
    given = [str(word) for word in root.obj or ()]
    kept, skip = [], False
    for word in given:
        if skip or word == "--cursor" or word.startswith("--cursor="):
            skip = word == "--cursor"
            continue
        kept.append(shlex.quote(word))
    return " ".join(["oncue", *kept])


def total_text(count: Callable[..., TaskCount | EventCount], filters: dict[str, Any]) -> str:
    """Return how many items a list has; "" if a server of an older version cannot say."""
    try:
        return count_text(count(**filters))
    except (Invalid, NotFound):
        return ""


def count_text(counted: TaskCount | EventCount) -> str:
    return f"{'over ' if counted.more else ''}{counted.count:,}"


def check_period(since_us: int, until_us: int) -> None:
    """Raise Invalid if a period ends before it begins."""
    if since_us and until_us and since_us >= until_us:
        raise Invalid("--since is not before --until", remedy="--since is the earlier one: --since 2h --until 1h")
