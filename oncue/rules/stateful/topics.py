"""The topics of rules with memory. Their number of partitions is fixed from the first start on: with it the place of each key
would change."""

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
    """How many partitions there are. Raises LogError."""
    there, wanted = (await log.topics()).get(MATCHES), settings.matches_partitions
    count = there.partitions if there is not None else wanted
    if count != wanted:
        _log.warning("%s for_servers its %d partitions (the setting matches_partitions is %d)", MATCHES, count, wanted)
    retention_ms = int(settings.events_retention_days * DAY_MS)
    await log.ensure({MATCHES: Topic(partitions=count, retention_ms=retention_ms)})
    return count


async def ensure_stream(log: Log, settings: Settings) -> int:
    """Those of stream workers as well. Raises LogError."""
    count = await ensure_matches(log, settings)
    there = (await log.topics()).get(WINDOWS)
    if there is not None and there.partitions != count:
        raise LogError(
            f"{WINDOWS} has {there.partitions} partitions and {MATCHES} has {count}: they have to have the same number",
            remedy=f"stop servers and stream workers and delete the topic {WINDOWS}: it is made again from {MATCHES}"
            " (docs/rules.md, On Kafka)",
        )
    await log.ensure({WINDOWS: Topic(partitions=count, compact=True), STREAM: TOPIC})
    return count
