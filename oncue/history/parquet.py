"""Writes a history as Parquet files, one a table, in row groups."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from oncue.history.database import HistoryError
from oncue.history.schema import TABLES, TIMES, Table

ROWS = 10_000  # of a row group; what is in memory at once
BYTES = 32 << 20  # of texts of a row group
_TYPES = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}


def write_parquet(database: Path, folder: Path) -> list[Path]:
    """Write the tables of a history file to FOLDER/<table>.parquet; return the files.

    A file is replaced when the new one is complete. Raises HistoryError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=60.0)
        try:
            db.execute("BEGIN")  # one state of all tables
            return [_write(db, name, table, folder / f"{name}.parquet") for name, table in TABLES.items()]
        finally:
            db.close()
    except (OSError, sqlite3.Error, pyarrow.ArrowException) as e:
        raise HistoryError(
            f"the Parquet files in {folder} cannot be written: {e}", remedy="make room; then export again"
        ) from e


def _write(db: sqlite3.Connection, name: str, table: Table, path: Path) -> Path:
    schema = pyarrow.schema([(column, _type(column, kind)) for column, kind in table.columns.items()])
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    os.close(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600))
    columns = ", ".join(f'"{column}"' for column in table.columns)
    with parquet.ParquetWriter(part, schema, compression="zstd") as writer:
        for rows in _groups(db.execute(f"SELECT {columns} FROM {name}")):
            arrays = [_array(values, field) for values, field in zip(zip(*rows, strict=True), schema, strict=True)]
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))
    os.replace(part, path)
    return path


def _groups(cursor: sqlite3.Cursor) -> Iterator[list[tuple[Any, ...]]]:
    """Yield rows, ROWS or about BYTES at a time."""
    rows: list[tuple[Any, ...]] = []
    size = 0
    for row in cursor:
        rows.append(row)
        size += sum(len(value) for value in row if isinstance(value, str))
        if len(rows) == ROWS or size > BYTES:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def _type(column: str, kind: type) -> Any:
    return pyarrow.timestamp("us", tz="UTC") if column in TIMES else _TYPES[kind]


def _array(values: tuple[Any, ...], field: Any) -> Any:
    found = [datetime.fromisoformat(v) if v else None for v in values] if field.name in TIMES else list(values)
    return pyarrow.array(found, field.type)
