"""Rows of a query as a table, CSV or JSON.

CSV and JSON are written as rows are read.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import click

from oncue.cli.output import safe, table
from oncue.text.escape import escaped_json

Rows = Iterable[Sequence[Any]]


def print_table(columns: Sequence[str], rows: Rows) -> None:
    table([safe(name) for name in columns], ([_cell(v) for v in row] for row in rows), "no rows")


def _cell(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    return "" if value is None else str(value)


def print_csv(columns: Sequence[str], rows: Rows) -> None:
    """Print CSV by RFC 4180. In a terminal, control characters are escaped."""
    escape = sys.stdout.isatty()
    for row in _with_head(columns, rows):
        line = io.StringIO()
        cells = [v.hex() if isinstance(v, bytes) else v for v in row]
        csv.writer(line, lineterminator="\n").writerow([safe(_cell(v)) for v in cells] if escape else cells)
        sys.stdout.write(line.getvalue())  # click would drop what looks like a color


def _with_head(columns: Sequence[str], rows: Rows) -> Iterator[Sequence[Any]]:
    yield columns
    yield from rows


def print_json(columns: Sequence[str], rows: Rows) -> None:
    """Print a JSON list of objects, one a line. Bytes are base64."""
    import msgspec

    end, names = "[", _distinct(columns)
    for row in rows:
        text = msgspec.json.encode(dict(zip(names, row, strict=True))).decode()
        click.echo(f"{end}\n{escaped_json(text)}", nl=False)
        end = ","
    click.echo("\n]" if end == "," else "[]")


def _distinct(columns: Sequence[str]) -> list[str]:
    """Return names of which none is lost in an object: n, n_2 ..."""
    found: list[str] = []
    for name in columns:
        number = 2
        other = name
        while other in found:
            other, number = f"{name}_{number}", number + 1
        found.append(other)
    return found
