"""Topics on a real cluster: creation, repair, retention, compaction."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from oncue.errors import Invalid, LogError
from oncue.log import Record, Topic, open_log


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return f"p{abs(hash(tmp_path))}."


async def _settings(admin: AIOKafkaAdminClient, topic: str) -> dict[str, str]:
    (found,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    return {entry[0]: entry[1] for entry in found.resources[0][4]}


def test_wrong_settings_are_repaired_and_foreign_ones_kept(
    kafka: tuple[str, str], prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka[0])
        await admin.start()
        theirs = {"retention.ms": "1000", "segment.bytes": "1234567", "max.message.bytes": "1000"}
        await admin.create_topics([NewTopic(f"{prefix}a", 2, 1, topic_configs=theirs)])
        log = await open_log(f"kafka://{kafka[0]}?prefix={prefix}")

        async def shown() -> bool:  # brokers learn of a new topic after a moment
            return bool(await log.topics())

        await _until(shown)
        assert await log.topics() == {"a": Topic(partitions=2, retention_ms=1000)}
        await log.ensure({"a": Topic(partitions=3, compact=True)})
        found = await _settings(admin, f"{prefix}a")
        assert (found["cleanup.policy"], found["retention.ms"]) == ("compact", "-1")
        assert found["segment.bytes"] == "1234567", "not ours to change"
        assert int(found["max.message.bytes"]) > 8_000_000
        await log.append("a", [Record(bytes(2_000), b"k")], 2)
        assert (await log.topics())["a"] == Topic(partitions=3, compact=True)
        with pytest.raises(LogError, match="need keys"):
            await log.append("a", [Record(b"x")])
        await admin.close()
        await log.close()

    with caplog.at_level(logging.WARNING, "oncue"):
        asyncio.run(main())
    assert "retention.ms is 1000, not -1" in caplog.text


def test_more_replicas_than_brokers_is_an_error(own: object) -> None:
    async def main() -> None:
        broker = own()  # type: ignore[operator]
        log = await open_log(f"kafka://{broker.address}?replication=3")
        with pytest.raises(LogError, match=r"oncue\.events") as found:
            await log.ensure({"oncue.events": Topic()})
        assert "replication" in found.value.remedy
        await log.close()

    asyncio.run(main())


async def _until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Poll: brokers clean topics at their own pace and send no notice."""
    async with asyncio.timeout(60):
        while True:
            if await holds():
                return
            await asyncio.sleep(0.1)


def test_readers_continue_after_retention_by_the_brokers(kafka: tuple[str, str], prefix: str) -> None:
    async def main() -> None:
        log = await open_log(f"kafka://{kafka[0]}?prefix={prefix}")
        await log.ensure({"old": Topic(retention_ms=60_000)})
        reader = log.read(["old"], start={("old", 0): 0})
        for n in range(5):
            await log.append("old", [Record(b"%d" % n, time_ms=1_000)])

        async def gone() -> bool:
            return (await log.begin_offsets(["old"]))["old", 0] == 5

        await _until(gone)
        assert await log.housekeep() == {}
        behind = log.read(["old"], start={("old", 0): 1})
        await log.append("old", [Record(b"new", time_ms=time.time_ns() // 1_000_000)])
        for r in (reader, behind):
            found: list[bytes] = []
            while not found or found[-1] != b"new":
                found += [x.value for b in await r.next() for x in b.records]
        assert await log.lag("g", ["old"]) == {("old", 0): 1}
        await log.close()

    asyncio.run(main())


def test_readers_of_a_compacted_topic_see_the_newest_of_each_key(kafka: tuple[str, str], prefix: str) -> None:
    async def main() -> None:
        log = await open_log(f"kafka://{kafka[0]}?prefix={prefix}")
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka[0])
        await admin.start()
        quick = {
            "cleanup.policy": "compact",
            "min.cleanable.dirty.ratio": "0.01",
            "segment.ms": "100",
            "delete.retention.ms": "100",
            "max.compaction.lag.ms": "100",
        }
        await admin.create_topics([NewTopic(f"{prefix}r", 1, 1, topic_configs=quick)])
        await log.ensure({"r": Topic(compact=True)})
        for n in range(30):
            await log.append("r", [Record(b"%d" % n, b"k%d" % (n % 3))])
        await log.append("r", [Record(b"", b"k0")])
        # Past segment.ms: the next record begins a segment, so the ones before it can be cleaned.
        await asyncio.sleep(0.2)
        await log.append("r", [Record(b"end", b"end")])

        async def seen() -> list[tuple[bytes, bytes]]:
            end = (await log.end_offsets(["r"]))["r", 0]
            reader, found, at = log.read(["r"]), [], 0
            while at < end:
                for b in await reader.next():
                    found += [(r.key, r.value) for r in b.records]
                    at = b.next_offset
            await reader.close()
            return found

        async def compacted() -> bool:
            return len(await seen()) <= 4

        await _until(compacted)
        found = await seen()
        assert [f for f in found if f[0] != b"k0"] == [(b"k1", b"28"), (b"k2", b"29"), (b"end", b"end")]
        assert [f for f in found if f[0] == b"k0"] in ([], [(b"k0", b"")]), "a tombstone, and later nothing"
        await admin.close()
        await log.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("kafka://", "names no broker"),
        ("kafka://host", "not host:port"),
        ("kafka://h:1?prefx=a", "unknown option"),
        ("kafka://h:1?record_mb=500", "between 1 and 90"),
        ("kafka://h:1?replication=many", "the log's URL"),
    ],
)
def test_an_invalid_url_is_refused(url: str, text: str) -> None:
    with pytest.raises(Invalid, match=text) as found:
        asyncio.run(open_log(url))
    assert found.value.remedy


def test_an_unreachable_broker_is_named() -> None:
    with pytest.raises(LogError, match=r"127\.0\.0\.1:1") as found:
        asyncio.run(open_log("kafka://127.0.0.1:1"))
    assert "cluster up" in found.value.remedy
