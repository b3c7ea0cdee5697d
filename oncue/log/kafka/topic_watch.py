"""Notices topics that are deleted, or made anew, while they are in use.

The log's readers stand at offsets of the old topic. What is appended to the new one lies before
them, so they stop, and the log is `lost` until it is opened again: then all follow what is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from aiokafka import errors as k
from aiokafka.client import AIOKafkaClient

from oncue.log.kafka.topic_ids import topic_ids
from oncue.log.kafka.topics import KafkaTopic, Topics

logger = logging.getLogger(__name__)

PERIOD_S = 2.0  # between two looks at topics that no reader fetches
PAUSE_S = 0.2  # between two looks at a suspected one
ANEW_S, DELETED_S = 1.0, 10.0  # brokers learn of a change one after another


class TopicWatch:
    """Compares the ids of topics with those that they had when the log was opened.

    `fetched`: returns the topics that readers fetch by their ids. These readers call `suspect`.
    `beyond_end`: names a partition that has ended before a reader's position for a while, or "".
    """

    def __init__(
        self,
        client: AIOKafkaClient,
        topics: Topics,
        fetched: Callable[[], set[KafkaTopic]],
        beyond_end: Callable[[], str],
    ) -> None:
        self._client, self._topics, self._fetched, self._beyond_end = client, topics, fetched, beyond_end
        self.lost = ""  # which topic is not what it was
        self._suspects: dict[KafkaTopic, float] = {}  # since when
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name="kafka topic watch")

    def suspect(self, topic: KafkaTopic) -> None:
        """Look at this topic soon: a broker did not know it by its id."""
        self._suspects.setdefault(topic, time.monotonic())
        self._wake.set()

    def report(self, why: str) -> None:
        """Record that the log is not what it was."""
        if not self.lost:
            self.lost = why
            logger.error("%s. Nothing new is accepted until the server is started again", why)

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), PERIOD_S)
            self._wake.clear()
            if beyond := self._beyond_end():
                self.report(f"{beyond}: its last records are gone")
            with contextlib.suppress(k.KafkaError, OSError):  # the fetcher tells of these
                await self._look()
            await asyncio.sleep(PAUSE_S)
            if self._suspects:
                self._wake.set()

    async def _look(self) -> None:
        unread = {t for t in self._topics.required() if not t.gone} - self._fetched()
        wanted = unread | self._suspects.keys()
        found = await topic_ids(self._client, [t.full for t in wanted])
        now = time.monotonic()
        for topic in wanted:
            seen = found.get(topic.full, b"")
            if not topic.id:
                topic.id = seen
            if seen == topic.id:
                self._suspects.pop(topic, None)
            elif now - self._suspects.setdefault(topic, now) > (ANEW_S if seen else DELETED_S):
                del self._suspects[topic]
                topic.gone = True
                how = "deleted and made anew" if seen else "deleted"
                self.report(f"the topic {topic.full} was {how}: the records that it had are gone")

    async def close(self) -> None:
        """Stop looking."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
