"""Statements over many rows at once.

One `sqlite3` step takes and gives back the interpreter's lock; a thread that steps once a row beside a busy one starves
(117,000 rows/s fell to 309). So rows go in chunks of up to 256 a statement. Chunks are powers of two: few statements to
prepare, all of which stay in the connection's cache.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from typing import Any

CHUNK = 256


def chunks(count: int) -> Iterator[tuple[int, int]]:
    """(start, size) of the chunks of so many rows."""
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
    """The text of VALUES with so many rows of parameters; numbered: the first column is the row's index."""
    row = ",".join("?" * width)
    if numbered:
        return "VALUES " + ",".join(f"({i},{row})" for i in range(size))
    return "VALUES " + ",".join([f"({row})"] * size)


@cache
def statement(template: str, size: int, width: int, numbered: bool = False) -> str:
    """The template with its `{values}` filled in."""
    return template.replace("{values}", values(size, width, numbered))


def run(db: sqlite3.Connection, template: str, rows: Sequence[Sequence[Any]], first: Sequence[Any] = ()) -> int:
    """Run the template for all rows, which have the same width; `first` are the parameters before {values}. Returns how
    many rows were changed."""
    changed = 0
    for start, size in chunks(len(rows)):
        text = statement(template, size, len(rows[0]))
        changed += db.execute(text, (*first, *chain.from_iterable(rows[start : start + size]))).rowcount
    return changed


def fetch(db: sqlite3.Connection, template: str, keys: Sequence[Any]) -> list[Any]:
    """All rows that the template finds for keys of one column."""
    found: list[Any] = []
    for start, size in chunks(len(keys)):
        found += db.execute(statement(template, size, 1), keys[start : start + size]).fetchall()
    return found
