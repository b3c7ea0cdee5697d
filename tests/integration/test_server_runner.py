"""ServerRunner on a shared log: where it starts, and its errors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from oncue.errors import LogError, NotOwner, Undecodable
from oncue.log import Record, Topic
from oncue.protocol.codec import encode
from oncue.protocol.topics import EVENTS, MATCHES, WINDOWS
from oncue.rules.stateful.changelog_states import BY_SERVERS, PROGRESS, records
from oncue.rules.stateful.handover import hand_over, read_states, start_at_end
from oncue.rules.stateful.record_group import Progress
from oncue.rules.stateful.server_runner import ServerRunner
from tests.integration.embedded_site import PARTITIONS, Endpoints, Site, record, rule, site_in
from tests.integration.test_kafka_runner import FlushingFence, running


def runner_of(site: Site) -> ServerRunner:
    fence = FlushingFence(site.log)
    return ServerRunner(
        site.log, fence, Endpoints(), "srv", PARTITIONS, "kafka://b:1", active_rules=lambda: site.engine.active_rules
    )


def with_site(folder: Path, body: Callable[[Site], Awaitable[None]]) -> None:
    async def run() -> None:
        async with site_in(folder) as site:
            await site.log.ensure({WINDOWS: Topic(partitions=PARTITIONS, compact=True)})
            site.deploy(rule(batch={"count": 3}))
            await body(site)

    asyncio.run(run())


async def folded(site: Site) -> bool:
    if any((await site.log.lag("rules", [EVENTS])).values()):
        return False
    done = await read_states(site.log)
    return all(done[n].progress.next >= end for (_, n), end in (await site.log.end_offsets([MATCHES])).items())


def test_it_resumes_with_the_states_of_a_server_file(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        async with site.running():
            await site.emit(*(record(n) for n in range(4)))
            await site.settled()
        assert await hand_over(site.log, FlushingFence(site.log), tmp_path / "windows.db", to_workers=False) == []
        runner = runner_of(site)
        async with running(site.engine.run(), runner.run()):
            await site.emit(*(record(n) for n in range(4, 7)))
            await site.until(lambda: folded(site))
            summary = await runner.summary()
        assert await site.arguments() == [{"n": [0, 1, 2]}, {"n": [3, 4, 5]}]
        assert summary["r"].events == 1
        assert all(table.by_servers for table in (await read_states(site.log)).values())
        assert await runner.summary() == {}  # another's, by now

    with_site(tmp_path, body)


def test_it_reports_that_the_log_has_deleted_the_first_matches(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        async with running(site.engine.run()):
            await site.emit(*(record(n) for n in range(5)))
            await site.until(lambda: _matched(site))
        ends = {number: end for (_, number), end in (await site.log.end_offsets([MATCHES])).items() if end}
        for number, end in ends.items():
            await site.log.truncate(MATCHES, number, end)
        runner = runner_of(site)
        with pytest.raises(LogError, match="has deleted the first matches"):
            await runner.run()
        assert "oncue stream --anew --log kafka://b:1" in runner.trouble
        # Meanwhile it claims nothing, so a repair is not fenced off.
        claims = len(await _claims(site))
        with pytest.raises(LogError):
            await runner.run()
        assert len(await _claims(site)) == claims
        assert await start_at_end(site.log, FlushingFence(site.log))
        async with running(site.engine.run(), runner.run()):
            await site.emit(*(record(n) for n in range(5, 8)))
            await site.until(lambda: folded(site))
        assert await site.arguments() == [{"n": [5, 6, 7]}]
        assert runner.trouble == ""

    with_site(tmp_path, body)


async def _matched(site: Site) -> bool:
    return not any((await site.log.lag("rules", [EVENTS])).values()) and any(
        (await site.log.end_offsets([MATCHES])).values()
    )


async def _claims(site: Site) -> list[int]:
    return [end for end in (await site.log.end_offsets([WINDOWS])).values() for _ in range(end)]


def test_states_of_another_log_are_refused(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        await site.log.append(
            WINDOWS, records([(PROGRESS, encode(tuple(Progress(7, 1)))), (BY_SERVERS, encode(True))]), 0
        )
        runner = runner_of(site)
        with pytest.raises(LogError, match=r"belong to another oncue\.matches"):
            await runner.run()
        assert "delete the topic oncue.windows" in runner.trouble

    with_site(tmp_path, body)


def test_records_of_others_among_the_states_are_left_out(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        keys = [b"", b"k", encode(7), encode(()), encode(("s", "x")), encode(("i", "x")), b"\x91" * 5_000]
        await site.log.append(WINDOWS, [Record(b"nonsense", key) for key in keys], 0)
        runner = runner_of(site)
        async with running(site.engine.run(), runner.run()):
            await site.emit(*(record(n) for n in range(3)))
            await site.until(lambda: folded(site))
        assert await site.arguments() == [{"n": [0, 1, 2]}]
        assert runner.trouble == ""

    with_site(tmp_path, body)


def test_a_state_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        await site.log.append(WINDOWS, records([(("s", "r", "x", "k"), b"nonsense")]), 0)
        runner = runner_of(site)
        for _ in range(2):
            with pytest.raises(Undecodable):
                await runner.run()
            assert "oncue.windows/0 at 0 cannot be read" in runner.trouble
            assert "delete the topic oncue.windows" in runner.trouble

    with_site(tmp_path, body)


def test_after_a_lost_claim_it_resumes_from_the_stored_states(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        real, troubles = site.log.commit, [NotOwner("another server has it")]

        async def commit(group: str, *rest: object, **more: object) -> object:
            if group == "stream" and rest[0] and troubles:
                raise troubles.pop(0)
            return await real(group, *rest, **more)  # type: ignore[arg-type]

        site.log.commit = commit  # type: ignore[method-assign, assignment]
        runner = runner_of(site)
        async with running(site.engine.run()):
            await site.emit(*(record(n) for n in range(4)))
            with pytest.raises(LogError, match="another process has claimed"):
                async with asyncio.timeout(30):
                    await runner.run()
            assert not troubles
            async with running(runner.run()):
                await site.until(lambda: folded(site))
        assert await site.arguments() == [{"n": [0, 1, 2]}]

    with_site(tmp_path, body)
