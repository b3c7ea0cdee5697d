"""The durable log. `open_log(url)` picks the backend: `sqlite:///folder` (embedded) or `kafka://host:port,...`."""

from __future__ import annotations

from oncue.config import Settings
from oncue.errors import Invalid, MissingExtra
from oncue.log.base import Append, Batch, Log, Partition, Position, Reader, Record, Start, Topic

__all__ = ["Append", "Batch", "Log", "Partition", "Position", "Reader", "Record", "Start", "Topic", "open_log"]


async def open_log(url: str, settings: Settings | None = None) -> Log:
    """`settings` has the names, passwords and certificates (kafka_*). Raises Invalid for a URL of an unknown kind,
    MissingExtra, and what the backend raises on opening."""
    kind, _, rest = url.partition("://")
    if kind == "sqlite":
        from oncue.log.sqlite import SqliteLog

        return await SqliteLog.open(rest)
    if kind == "kafka":
        try:
            from oncue.log.kafka import KafkaLog
        except ModuleNotFoundError as e:
            if (e.name or "").partition(".")[0] != "aiokafka":
                raise
            raise MissingExtra(
                "the log is on Kafka, but aiokafka is not installed", remedy="pip install 'oncue[server,kafka]'"
            ) from None
        return await KafkaLog.open(rest, settings or Settings())
    raise Invalid(f"no log of the kind {kind!r}", remedy="use sqlite:///path/to/folder or kafka://host:port")
