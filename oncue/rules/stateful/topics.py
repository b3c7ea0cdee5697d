"""Topics of stateful rules.

Their partition count is fixed at the first start: a change would move keys to other partitions.
"""

from __future__ import annotations

import logging

from oncue.config import Settings
from oncue.errors import LogError
from oncue.log.base import Log, Topic
from oncue.protocol.topics import MATCHES, STREAM, WINDOWS
from oncue.rules.stateful.worker_reports import TOPIC

DAY_MS = 86_400_000
_log = logging.getLogger(__name__)


async def ensure_matches(log: Log, settings: Settings) -> int:
    """Create or update `oncue.matches`; return its partition count.

    Raises LogError.
    """
    existing, wanted = (await log.topics()).get(MATCHES), settings.matches_partitions
    count = existing.partitions if existing is not None else wanted
    if count != wanted:
        _log.warning("%s keeps its %d partitions (the setting matches_partitions is %d)", MATCHES, count, wanted)
    retention_ms = int(settings.events_retention_days * DAY_MS)
    await log.ensure({MATCHES: Topic(partitions=count, retention_ms=retention_ms)})
    return count


async def ensure_stream(log: Log, settings: Settings) -> int:
    """Also create the topics of stream workers; return the partition count.

    Raises LogError.
    """
    count = await ensure_matches(log, settings)
    existing = (await log.topics()).get(WINDOWS)
    if existing is not None and existing.partitions != count:
        raise LogError(
            f"{WINDOWS} has {existing.partitions} partitions and {MATCHES} has {count}: they have to have the same number",
            remedy=f"stop servers and stream workers and delete the topic {WINDOWS}: it is made again from {MATCHES}"
            " (docs/rules.md, On Kafka)",
        )
    await log.ensure({WINDOWS: Topic(partitions=count, compact=True), STREAM: TOPIC})
    return count
