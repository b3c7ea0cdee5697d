"""The durable log.

`open_log(url)` picks the backend: `sqlite:///folder` (embedded) or `kafka://host:port,...`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from oncue.config import Settings
from oncue.errors import Invalid, MissingExtra
from oncue.extras import pip_install
from oncue.log.base import Append, Assignment, Log, Partition, Position, Reader, Record, RecordBatch, Start, Topic
from oncue.log.finding import Finding

__all__ = [
    "Append",
    "Assignment",
    "Finding",
    "Log",
    "Partition",
    "Position",
    "Reader",
    "Record",
    "RecordBatch",
    "Start",
    "Topic",
    "examine_log",
    "open_log",
]


async def open_log(url: str, settings: Settings | None = None) -> Log:
    """Open the log at this URL; `settings` has Kafka's credentials (kafka_*).

    Raises Invalid for an unknown scheme, MissingExtra, and the backend's errors.
    """
    kind, _, rest = url.partition("://")
    if kind == "sqlite":
        from oncue.log.sqlite.log import SqliteLog

        return await SqliteLog.open(rest)
    if kind == "kafka":
        try:
            from oncue.log.kafka import KafkaLog
        except ModuleNotFoundError as e:
            raise _extra(e) from None
        return await KafkaLog.open(rest, settings or Settings())
    raise Invalid(f"no log of the kind {kind!r}", remedy="use sqlite:///path/to/folder or kafka://host:port")


async def examine_log(
    url: str, settings: Settings, topics: Mapping[str, Topic], groups: Mapping[str, Sequence[str]]
) -> list[Finding]:
    """Check an external log for `oncue doctor`; changes nothing.

    `topics` are those that a server needs, `groups` maps each group to the topics it reads. An
    embedded log has no findings. Raises Invalid, MissingExtra.
    """
    kind, _, rest = url.partition("://")
    if kind != "kafka":
        return []
    try:
        from oncue.log.kafka.doctor.run import examine
    except ModuleNotFoundError as e:
        raise _extra(e) from None
    return await examine(rest, settings, topics, groups)


def _extra(error: ModuleNotFoundError) -> Exception:
    if (error.name or "").partition(".")[0] != "aiokafka":
        return error
    return MissingExtra(
        "the log is on Kafka, but aiokafka is not installed", remedy=pip_install(("aiokafka", "cramjam"))
    )
