"""Limits of rules on the real embedded log, with engine and SQLite file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oncue.ids import PREFIX
from oncue.log import Record
from oncue.protocol import cloudevents
from oncue.protocol.codec import encode
from oncue.protocol.event_types import OVERDUE_TYPE
from oncue.protocol.records import OK, VERSION
from oncue.protocol.topics import EVENTS, MATCHES
from oncue.rules.operators.chain import limited_key
from oncue.rules.operators.records import TaskEnd
from tests.integration.embedded_site import Site, all_of, record, rule
from tests.integration.test_embedded_runner import with_site


def test_a_deadline_is_told_of_although_the_limit_passes_the_firing_over(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        join = {"key": "${data.k}", "count": 2, "deadline": "100ms", "then": "fire"}
        site.deploy(rule(join=join, limit={"running": 1, "overlap": "skip"}))

        async def overdue() -> list[str]:
            events = [cloudevents.from_record(r.value, r.headers) for r in await all_of(site.log, EVENTS)]
            found = [str(e.subject) for e in events if e.type == OVERDUE_TYPE]
            return sorted(found) if len(found) == 3 else []

        async with site.running():
            await site.emit(*(record(n, k=k) for n, k in enumerate("abc")))
            assert await site.until(overdue) == ["a", "b", "c"]
            await site.settled()
        assert len(await site.tasks()) == 1
        assert await site.dead() == []

    with_site(tmp_path, body)


def test_a_pause_holds_what_waits_for_a_limit(tmp_path: Path) -> None:
    def limited(**more: Any) -> dict[str, Any]:
        return rule(args={"n": "${data.n}"}, limit={"running": 1}, **more)

    async def body(site: Site) -> None:
        async def end(at: int) -> None:
            task = (await site.tasks())[at]
            ended = TaskEnd(VERSION, "r", task.id[:PREFIX], 0, 1, OK, 0)
            await site.log.append(MATCHES, [Record(encode(ended), limited_key("r"))])
            await site.settled()

        site.deploy(limited())
        async with site.running():
            await site.emit(*(record(n) for n in range(3)))
            await site.until(site.tasks)
            await site.settled()
            site.deploy(limited(mode="paused"), version=2)
            await site.emit(record(3))
            await site.settled()
            await end(0)
            assert await site.arguments() == [{"n": 0}]
            site.deploy(limited(), version=3)
            for at in range(1, 4):

                async def more(at: int = at) -> bool:
                    return len(await site.tasks()) > at

                await site.until(more)
                await end(at)
        assert await site.arguments() == [{"n": n} for n in range(4)]

    with_site(tmp_path, body)
