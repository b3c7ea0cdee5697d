"""Output of commands: text, tables, JSON, errors.

Control characters in data are escaped, those that change the direction of text too. Output to a
pipe has no colors and is never shortened.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click
import msgspec

from oncue.errors import Invalid, OncueError
from oncue.text.escape import escaped, escaped_json

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
CELL_CHARS = 70  # of a table's cell in a terminal; a function's hash has 64
LEAST_CHARS = 10  # of a cell in a narrow terminal
WHOLE_ID = 120  # columns of a terminal that shows whole ids
STATES = {
    "succeeded": "green",
    "running": "cyan",
    "connected": "green",
    "active": "green",
    "failed": "red",
    "lost": "red",
    "timed_out": "red",
    "waiting": "yellow",
    "retrying": "yellow",
    "cancelling": "yellow",
}


def color() -> bool | None:
    """Return False if the environment asks for no colors, else None."""
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None


def safe(value: Any, *, lines: bool = False) -> str:
    """Return text for a terminal, with escapes for unprintable characters.

    `lines`: keep line breaks and tabs.
    """
    return escaped(value if isinstance(value, str) else str(value), lines=lines)


def _shortened(text: str, chars: int) -> str:
    """Cut the middle out of long text: of a path, the ends are the most telling."""
    half = chars // 2
    return text if len(text) <= chars else f"{text[: chars - half]}…{text[len(text) - half + 1 :]}"


def _fitted(head: Sequence[str], cells: list[list[str]], columns: int) -> list[list[str]]:
    """Return rows whose last column begins within three fifths of the terminal."""
    widths = [min(CELL_CHARS, max(len(row[i]) for row in cells)) for i in range(len(head) - 1)] if cells else []
    first = widths[:1]
    others = {i: width for i, width in enumerate(widths) if i}
    room = columns * 3 // 5 - sum(first) - 2 * len(widths)
    while others and sum(others.values()) > room:
        widest = max(others, key=lambda i: others[i])
        if others[widest] <= max(LEAST_CHARS, len(head[widest])):
            break
        others[widest] -= 1
    most = [*first, *others.values()]
    return [[*map(_shortened, row[:-1], most), *row[-1:]] for row in cells]


def say(text: str = "", *, err: bool = False) -> None:
    click.echo(safe(text, lines=True), err=err)


def as_json(value: Any) -> None:
    """Print one JSON document."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    click.echo(escaped_json(text))


def json_line(value: Any) -> None:
    click.echo(escaped_json(msgspec.json.encode(value).decode()))
    sys.stdout.flush()


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], nothing: str) -> None:
    """Print a table, or the text `nothing` on stderr if there are no rows.

    A column is as wide as its widest cell. In a terminal, the middle of long cells is cut out, in a
    narrow one of the widest columns (`--json` and `show` print all of it). The first and the last
    column are not cut.
    """
    cells = [[safe(c) for c in row] for row in rows]
    if sys.stdout.isatty():
        cells = _fitted(head, cells, shutil.get_terminal_size().columns)
    if not cells:
        say(nothing, err=True)
        return
    widths = [max(len(head[i]), *(len(row[i]) for row in cells)) for i in range(len(head))]
    click.secho(_row(head, widths), bold=True)
    for row in cells:
        click.echo(_row([click.style(c, fg=STATES.get(c)) if c in STATES else c for c in row], widths, row))


def listing(
    items: Iterable[T], json_: bool, head: Sequence[str], row: Callable[[T], Sequence[Any]], nothing: str
) -> None:
    """Print the items of a list command as JSON, or as a table of rows."""
    if json_:
        as_json(list(items))
    else:
        table(head, map(row, items), nothing)


def _row(cells: Sequence[str], widths: Sequence[int], plain: Sequence[str] | None = None) -> str:
    plain = plain or cells
    padded = [c + " " * (w - len(p)) for c, w, p in zip(cells, widths, plain, strict=True)]
    return "  ".join(padded).rstrip()


def facts(pairs: Iterable[tuple[str, Any]]) -> None:
    """Print `name: value` lines.

    Empty values are left out; longer texts follow indented.
    """
    shown = [(name, value) for name, value in pairs if value not in ("", None, 0, [], {}, ())]
    width = max((len(name) for name, _ in shown), default=0) + 1
    for name, value in shown:
        text = safe(value if isinstance(value, str) else plain(value), lines=True).rstrip("\n")
        if "\n" in text:
            click.echo(f"{name}:")
            click.echo("\n".join("  " + line for line in text.splitlines()))
        else:
            click.echo(f"{(name + ':').ljust(width)} {text}")


def plain(value: Any) -> str:
    """Return a value as JSON on one line."""
    return msgspec.json.encode(value).decode()


def when(us: int) -> str:
    """Return unix microseconds as local time; "" for 0."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(us / 1e6)) if us else ""


def when_listed(us: int) -> str:
    """Return the time for a list: in a terminal, of today without the date."""
    text = when(us)
    return text[11:] if sys.stdout.isatty() and text[:10] == time.strftime("%Y-%m-%d") else text


def number_of(n: int, noun: str) -> str:
    """Return a number of things in words, as `1 event` or `2,000 events`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def ambiguous(text: str, nouns: str, listed: Iterable[str], remedy: str) -> Invalid:
    """Return the error for a short id that means several things, which it lists."""
    lines = "\n".join(f"    {line}" for line in listed)
    return Invalid(f"{text} means several {nouns}:\n{lines}", remedy=remedy)


def took(start_us: int, end_us: int) -> str:
    """Return a duration for people, such as 3.2 s; "" if it is not known."""
    if not start_us or end_us < start_us:
        return ""
    s = (end_us - start_us) / 1e6
    if s < 1:
        return f"{s * 1000:.1f} ms"
    return f"{s:.1f} s" if s < 120 else f"{int(s // 60)} min {int(s % 60)} s"


def show_error(e: OncueError) -> None:
    """Print the message, the explanation of the error's class, and the remedy."""
    file = getattr(e, "file", "")
    line, column = getattr(e, "line", 0), getattr(e, "column", 0)
    where = f"{file}:{line}:{column}: " if file and line else ""
    message = e.message if e.message.startswith(where) else where + e.message
    click.secho("error: " + safe(message, lines=True), err=True, fg="red", color=color())
    sentence = " ".join((type(e).__doc__ or "").split()).split(". ")[0].rstrip(".")
    if sentence and type(e) is not OncueError:  # the root of the tree explains nothing
        click.echo(f"  {sentence}.", err=True)
    if e.remedy:
        click.echo(safe("  → " + e.remedy, lines=True), err=True)


def json_option(f: F) -> F:
    return click.option("--json", "json_", is_flag=True, help="Print JSON for scripts.")(f)
