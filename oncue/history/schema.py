"""Tables of an exported history. docs/history.md is checked against them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

SCHEMA = 1  # PRAGMA user_version of the files


class Table(NamedTuple):
    """One table: its columns with their types, keys and indexes.

    Times are ISO 8601 texts of UTC with µs, so that they sort; JSON is text.
    """

    columns: Mapping[str, type]
    key: tuple[str, ...]
    references: Mapping[str, tuple[str, str]] = {}  # column -> table, column
    indexes: tuple[str, ...] = ()
    searched: tuple[str, ...] = ()  # columns of the full-text search


_ERRORS = ("error_type", "error_message", "error_traceback")
TASK = {"task": ("tasks", "id")}

#: In the order in which they are made: a table stands behind those that it refers to.
TABLES: Mapping[str, Table] = {
    "rules": Table(
        {
            "name": str,
            "state": str,
            "label": str,
            "version": int,
            "starts_on": str,
            "runs": str,
            "endpoint": str,
            "text": str,
        },
        ("name",),
        indexes=("label",),
    ),
    "events": Table(
        {
            "offset": int,
            "id": str,
            "source": str,
            "type": str,
            "subject": str,
            "time": str,
            "stored_at": str,
            "trigger": str,
            "data": str,
            "extensions": str,
        },
        ("offset",),
        indexes=("id", "type", "stored_at", "trigger"),
    ),
    "tasks": Table(
        {
            "id": str,
            "name": str,
            "function": str,
            "rule": str,
            "rule_version": int,
            "endpoint": str,
            "owner": str,
            "state": str,
            "closed": int,
            "attempt": int,
            "accepted_at": str,
            "started_at": str,
            "ended_at": str,
            "waited_s": float,
            "ran_s": float,
            "event": int,
            "event_source": str,
            "event_id": str,
            "after": str,
            "retry_of": str,
            "replaced_by": str,
            "why": str,
            "arguments": str,
            "resources": str,
            "affinity": str,
            "priority": str,
            "replay": str,
            "forgotten": int,
        },
        ("id",),
        {"rule": ("rules", "name"), "event": ("events", "offset")},
        ("state", "rule", "name", "endpoint", "accepted_at", "event", "after", "retry_of", "closed"),
    ),
    "attempts": Table(
        {
            "task": str,
            "position": int,
            "number": int,
            "status": str,
            "started_at": str,
            "ended_at": str,
            "ran_s": float,
            "superseded": int,
            "error_type": str,
            "error_message": str,
            "error_traceback": str,
            "exit_code": int,
        },
        ("task", "position"),
        TASK,
        ("status", "error_type"),
        _ERRORS,
    ),
    "outcomes": Table(
        {
            "task": str,
            "state": str,
            "ended_at": str,
            "value": str,
            "output": str,
            "error_type": str,
            "error_message": str,
            "error_traceback": str,
            "remedy": str,
            "exit_code": int,
        },
        ("task",),
        TASK,
        ("state", "ended_at", "error_type"),
        _ERRORS,
    ),
    "files": Table(
        {
            "id": str,
            "role": str,
            "path": str,
            "name": str,
            "size_bytes": int,
            "modified_at": str,
            "sha256": str,
            "host": str,
            "event": int,
            "task": str,
        },
        ("id",),
        TASK | {"event": ("events", "offset")},
        ("path", "name", "event", "task"),
    ),
}

#: Columns with times, which Parquet files have as timestamps.
TIMES = frozenset({"stored_at", "accepted_at", "started_at", "ended_at", "modified_at"})
