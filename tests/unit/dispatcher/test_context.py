"""ServerContext: when requests are accepted, and reading one's own writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from oncue.dispatcher.context import position_text
from oncue.errors import DiskFull, NotReady
from oncue.log import Position, Record
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION, EndpointRecord, TokenRecord
from oncue.protocol.topics import DEAD, REGISTRY
from tests.unit.dispatcher.services.service_site import Site, with_site, with_two_sites

TOKEN = TokenRecord(VERSION, "tok_1", "h" * 64, "ada", ("user",))


def test_nothing_is_accepted_while_the_server_starts_or_the_disk_is_full(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        site.context.check_accepting()
        site.context.disk_full = "the disk is full"
        with pytest.raises(DiskFull, match="the disk is full"):
            site.context.check_accepting()
        site.context.ready = False
        with pytest.raises(NotReady):
            site.context.check_accepting()

    with_site(tmp_path, work)


def test_records_of_the_registry_are_in_force_when_they_are_recorded(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        endpoint = EndpointRecord(VERSION, "e1", "laptop", "ada", b"k")
        positions = await site.context.record([("token:1", TOKEN), ("endpoint:e1", endpoint)])
        assert site.context.registry.token(TOKEN.hash) == TOKEN
        assert site.context.registry.endpoint("e1") == endpoint
        assert positions == [Position(REGISTRY, 0, 0, 2)]

    with_site(tmp_path, work)


def test_records_of_another_server_are_in_force_after_a_sync(tmp_path: Path) -> None:
    async def work(first: Site, second: Site) -> None:
        await first.context.record([("token:1", TOKEN)])
        await second.context.sync_registry()
        assert second.context.registry.token(TOKEN.hash) == TOKEN

    with_two_sites(tmp_path, work)


def test_a_barrier_waits_for_records_handed_to_the_log_before(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        append = site.log.append(DEAD, [Record(encode(TOKEN))])
        await site.context.barrier((DEAD,))
        assert append.done()
        assert site.view.positions()[DEAD, 0] == 1

    with_site(tmp_path, work)


def test_a_position_is_waited_for_and_other_text_is_ignored(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        positions = await site.log.append(DEAD, [Record(encode(TOKEN))])
        text = position_text(positions)
        assert text == f"{DEAD}:0:1"
        await site.context.wait_for(f" {text},nonsense,a:b:c,:0:1,{DEAD}:0:")
        assert site.view.positions()[DEAD, 0] == 1
        for other in ("", "nonsense", "::", "x:1"):
            await site.context.wait_for(other)

    with_site(tmp_path, work)
