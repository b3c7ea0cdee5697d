"""Brokers and servers that are killed or stopped: nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from oncue.errors import NotOwner
from oncue.log import Append, Log, Record, RecordBatch, Topic, open_log
from tests.kafka.broker import Broker, Cluster

CHILD = Path(__file__).with_name("kafka_child.py")


async def _all(log: Log, topic: str, start: str = "earliest") -> list[bytes]:
    """Return the values of a topic up to its end."""
    ends, found = await log.end_offsets([topic]), []
    reached = {place: 0 for place, end in ends.items() if end}
    reader = log.read([topic], start="earliest")
    async with asyncio.timeout(60):
        while any(at < ends[place] for place, at in reached.items()):
            for b in await reader.next():
                found += [r.value for r in b.records]
                reached[b.topic, b.partition] = b.next_offset
    await reader.close()
    return found


async def _until(holds: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while True:
            found = holds()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.02)


async def _load(log: Log, trouble: Callable[[], Awaitable[None]], topic: str, after: int = 300) -> int:
    """Append without pause during the trouble and `after` records more.

    All appends are acknowledged. Returns their number.
    """
    window = asyncio.Semaphore(64)
    futures: list[asyncio.Future[object]] = []
    under_way = asyncio.create_task(trouble())

    async def one() -> None:
        await window.acquire()
        future = log.append(topic, [Record(b"%d" % len(futures) + b"." * 200)])
        future.add_done_callback(lambda _: window.release())
        futures.append(future)  # type: ignore[arg-type]

    while not under_way.done():
        await one()
    await under_way
    for _ in range(after):
        await one()
    await asyncio.gather(*futures)
    return len(futures)


def test_appends_survive_the_kill_and_restart_of_a_broker(own: Callable[..., Broker]) -> None:
    broker = own()

    async def trouble() -> None:
        for _ in range(2):
            await asyncio.sleep(0.5)  # of load first, so that batches are in flight
            await asyncio.to_thread(broker.kill)
            await asyncio.to_thread(broker.start)

    async def main() -> None:
        log = await open_log(f"kafka://{broker.address}")
        count = await _load(log, trouble, "a")
        assert count > 500
        seen = await _all(log, "a")
        assert [int(v.split(b".")[0]) for v in seen] == list(range(count)), "each once, in order"
        await log.close()

    asyncio.run(main())


def test_appends_continue_while_a_broker_of_three_is_killed(three: Cluster) -> None:
    async def main() -> None:
        log = await open_log(f"kafka://{three.address}")
        await log.ensure({"a": Topic(partitions=3), "in": Topic()})

        async def trouble() -> None:
            for node in three.nodes[:2]:
                await asyncio.sleep(0.5)
                await asyncio.to_thread(node.kill)
                await log.append("a", [Record(b"without")], 1)  # written by the remaining two
                await asyncio.to_thread(node.start)

        count = await _load(log, trouble, "a")
        seen = [v for v in await _all(log, "a") if v != b"without"]
        assert sorted(int(v.split(b".")[0]) for v in seen) == list(range(count)), "each once"
        await log.close()

    asyncio.run(main())


def test_transactions_continue_when_a_broker_of_three_is_killed(three: Cluster) -> None:
    async def main() -> None:
        log = await open_log(f"kafka://{three.address}?session_s=3")
        for n in range(300):
            await log.append("in", [Record(b"%d" % n)])
        reader = log.read(["in"], group="g")
        done, killed = 0, False
        async with asyncio.timeout(120):
            while done < 300:
                batches = await reader.next(max_batches=3)
                records = [r for b in batches for r in b.records]
                await log.commit("g", batches, [Append("out", records)])
                done += len(records)
                if done > 100 and not killed:
                    killed = True
                    await asyncio.to_thread(three.nodes[1].kill)
        assert [int(v) for v in await _all(log, "out")] == list(range(300))
        assert await log.lag("g", ["in"]) == {("in", 0): 0}
        await log.close()

    asyncio.run(main())


@pytest.mark.parametrize("repeatable", [False, True])
def test_a_rebalance_during_work_loses_and_repeats_nothing(
    kafka: tuple[str, str], tmp_path: Path, repeatable: bool
) -> None:
    """Two servers divide a group's partitions while both work.

    Each event has its effect once; with `repeatable` commits, at least once.
    """
    url = f"kafka://{kafka[0]}?prefix=r{abs(hash(tmp_path))}.&session_s=2"

    async def work(log: Log, name: str, seen: dict[str, int], until: asyncio.Event) -> None:
        reader = log.read(["in"], group="g")
        while not until.is_set():
            try:
                batches = await asyncio.wait_for(reader.next(max_batches=1), 0.2)
            except TimeoutError:
                continue
            await asyncio.sleep(0.01)  # the work, during which the group may rebalance
            records = [r for b in batches for r in b.records]
            try:
                await log.commit("g", batches, [Append("out", records)], repeatable=repeatable)
                seen[name] += len(records)
            except NotOwner:
                seen["not owner"] += 1
        await reader.close()

    async def main() -> None:
        one, two = await open_log(url), await open_log(url)
        await one.ensure({"in": Topic(partitions=4)})
        await asyncio.gather(*[one.append("in", [Record(b"%d" % n)], n % 4) for n in range(400)])
        seen = {"one": 0, "two": 0, "not owner": 0}
        enough, over = asyncio.Event(), asyncio.Event()
        first = asyncio.create_task(work(one, "one", seen, over))
        await _until(lambda: seen["one"] > 0)
        second = asyncio.create_task(work(two, "two", seen, enough))
        for n in range(400, 1_600):
            await one.append("in", [Record(b"%d" % n)], n % 4)
        await _until(lambda: seen["two"] >= 50)
        enough.set()  # the second leaves the group
        await second

        async def idle() -> bool:
            return not any((await one.lag("g", ["in"])).values())

        await _until(idle)
        over.set()
        await first
        found = [int(v) for v in await _all(one, "out")]
        assert sorted(set(found) if repeatable else found) == list(range(1_600))
        assert seen["two"] >= 50
        await asyncio.gather(one.close(), two.close())

    asyncio.run(main())


def test_a_fenced_server_cannot_commit(kafka: tuple[str, str], tmp_path: Path) -> None:
    """Another server claims the partition, as after a pause beyond the session."""
    url = f"kafka://{kafka[0]}?prefix=z{abs(hash(tmp_path))}.&session_s=2"

    async def main() -> None:
        fenced, successor = await open_log(url), await open_log(url)
        await fenced.append("in", [Record(b"1")])
        batches = await fenced.read(["in"], group="g").next()
        # As its reader does first.
        await successor._transactions.claim("g", ("in", 0))  # type: ignore[attr-defined]
        for _ in range(3):
            with pytest.raises(NotOwner):
                await fenced.commit("g", batches, [Append("out", [Record(b"of the fenced server")])])
        await successor.commit(
            "g", [RecordBatch("in", 0, (0,), (Record(b"1"),))], [Append("out", [Record(b"of the successor")])]
        )
        assert await _all(successor, "out") == [b"of the successor"]
        await asyncio.gather(fenced.close(), successor.close())

    asyncio.run(main())


def test_the_open_transaction_of_a_killed_process_is_aborted(kafka: tuple[str, str], tmp_path: Path) -> None:
    url = f"kafka://{kafka[0]}?prefix=k{abs(hash(tmp_path))}.&session_s=2"

    async def main() -> None:
        log = await open_log(url)
        await log.append("in", [Record(b"1")])
        child = await asyncio.create_subprocess_exec(sys.executable, str(CHILD), url, stdout=subprocess.PIPE)
        assert child.stdout is not None
        line = await child.stdout.readline()
        child.kill()
        await child.wait()
        assert line == b"transaction is open\n"
        await log.append("out", [Record(b"behind it")])  # readers wait here until the transaction ends
        # The successor's claim aborts the open transaction.
        reader = log.read(["in"], group="g")
        batches = await reader.next()
        await log.commit("g", batches, [Append("out", [Record(b"of the successor")])])
        assert await _all(log, "out") == [b"behind it", b"of the successor"]
        assert await log.committed("g") == {("in", 0): 1}
        await log.close()

    asyncio.run(main())
