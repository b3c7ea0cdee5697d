"""The durable log. `open_log(url)` picks the backend: `sqlite:///folder` (embedded) today."""

from __future__ import annotations

from oncue.errors import Invalid
from oncue.log.base import Append, Batch, Log, Partition, Position, Reader, Record, Start, Topic

__all__ = ["Append", "Batch", "Log", "Partition", "Position", "Reader", "Record", "Start", "Topic", "open_log"]


async def open_log(url: str) -> Log:
    """Raises Invalid for a URL of an unknown kind, and what the backend raises on opening."""
    kind, _, rest = url.partition("://")
    if kind == "sqlite":
        from oncue.log.sqlite import SqliteLog

        return await SqliteLog.open(rest)
    raise Invalid(f"no log of the kind {kind!r}", remedy="use sqlite:///path/to/folder")
