"""SQL statements over many rows at once.

Each `sqlite3` step releases and reacquires the interpreter's lock. A thread that steps once per row
starves beside a busy thread (117,000 rows/s fell to 309). So a statement takes up to 256 rows. The
chunk sizes are powers of two: few statements, all of which stay in the connection's cache.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from typing import Any

CHUNK = 256


def chunks(count: int) -> Iterator[tuple[int, int]]:
    """Yield (start, size) of the chunks of `count` rows."""
    start = 0
    while count - start >= CHUNK:
        yield start, CHUNK
        start += CHUNK
    size = CHUNK >> 1
    while start < count:
        if count - start >= size:
            yield start, size
            start += size
        size >>= 1


@cache
def values(size: int, width: int, numbered: bool = False) -> str:
    """Return a VALUES clause; `numbered` adds the row's index as first column."""
    row = ",".join("?" * width)
    if numbered:
        return "VALUES " + ",".join(f"({i},{row})" for i in range(size))
    return "VALUES " + ",".join([f"({row})"] * size)


@cache
def statement(template: str, size: int, width: int, numbered: bool = False) -> str:
    """Return the template with `{values}` replaced by a VALUES clause."""
    return template.replace("{values}", values(size, width, numbered))


def run(db: sqlite3.Connection, template: str, rows: Sequence[Sequence[Any]], first: Sequence[Any] = ()) -> int:
    """Execute the template for all rows; return the number of changed rows.

    The rows have the same width; `first` holds parameters that come before {values}.
    """
    changed = 0
    for start, size in chunks(len(rows)):
        text = statement(template, size, len(rows[0]))
        changed += db.execute(text, (*first, *chain.from_iterable(rows[start : start + size]))).rowcount
    return changed


def fetch_each(db: sqlite3.Connection, template: str, keys: Sequence[Any]) -> Iterator[Any]:
    """Yield the rows of `fetch` one by one, so that the caller may stop."""
    for start, size in chunks(len(keys)):
        yield from db.execute(statement(template, size, 1), keys[start : start + size])


def fetch(db: sqlite3.Connection, template: str, keys: Sequence[Any]) -> list[Any]:
    """Return all rows that the template selects for keys of one column."""
    found: list[Any] = []
    for start, size in chunks(len(keys)):
        found += db.execute(statement(template, size, 1), keys[start : start + size]).fetchall()
    return found
