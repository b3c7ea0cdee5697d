"""EndpointService: registration, states from channel and report, revocation."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from oncue import curve
from oncue.clocks.process import now_us
from oncue.dispatcher.services.endpoints import MANY_ENDPOINTS, EndpointService
from oncue.errors import Conflict, Invalid, NotFound
from oncue.log import Record
from oncue.protocol import api as r
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION, EndpointRecord
from oncue.protocol.reports import Usage
from oncue.protocol.topics import REPORTS
from oncue.task_lifecycle import State
from tests.unit.dispatcher.services.service_site import (
    ADA,
    ADMIN,
    BOB,
    Site,
    just_before_record,
    with_site,
    with_two_sites,
)

PEER = "http://peer:1"


def service(site: Site) -> EndpointService:
    effects: Any = SimpleNamespace(usage={}, phase_reasons={})
    return EndpointService(site.context, site.bridge, effects, site.ownership, site.peers, "S" * 40)


def request(name: str = "laptop", key: str = "", **fields: Any) -> r.EndpointRequest:
    return r.EndpointRequest(name=name, public_key=key or curve.make_keys().public.decode(), **fields)


# ---------------------------------------------------------------- register


def test_an_endpoint_is_registered_with_the_address_of_the_bridge(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        answer = await service(site).register(ADA, request(labels={"gpu": "a100"}))
        assert (answer.name, answer.server_key, answer.bridge) == ("laptop", "S" * 40, "tcp://127.0.0.1:7000")
        known = site.context.registry.named("laptop", "ada")
        assert known is not None
        assert (known.id, known.labels) == (answer.id, {"gpu": "a100"})
        assert site.ownership.synced == 1

    with_site(tmp_path, work)


def test_the_same_key_again_changes_only_the_fields_that_are_given(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        endpoints, first = service(site), request(labels={"gpu": "a100"}, lost_after_ms=5_000)
        before = await endpoints.register(ADA, first)
        after = await endpoints.register(ADA, request(key=first.public_key, lost_after_ms=9_000))
        known = site.context.registry.endpoint(before.id)
        assert known is not None
        assert (after.id, known.labels, known.lost_after_ms) == (before.id, {"gpu": "a100"}, 9_000)

    with_site(tmp_path, work)


def test_a_name_has_one_key_and_a_key_one_endpoint(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        endpoints, first = service(site), request()
        await endpoints.register(ADA, first)
        with pytest.raises(Conflict, match="'laptop' with another key"):
            await endpoints.register(ADA, request())
        with pytest.raises(Conflict, match="belongs to another endpoint"):
            await endpoints.register(ADA, request("desktop", first.public_key))
        await endpoints.register(BOB, request())  # a name belongs to its owner

    with_site(tmp_path, work)


def test_a_revoked_key_stays_refused(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        endpoints, first = service(site), request()
        registered = await endpoints.register(ADA, first)
        await site.follow_tasks_of(registered.id)
        await endpoints.revoke(ADA, "laptop")
        with pytest.raises(Conflict, match="this key was revoked") as failed:
            await endpoints.register(ADA, first)
        assert failed.value.details == {"revoked_key": True, "endpoint": registered.id}
        assert (await endpoints.register(ADA, request())).id != registered.id

    with_site(tmp_path, work)


@pytest.mark.parametrize("wrong", [request("a b"), request(""), request(key="short"), request("n" * 201)])
def test_a_name_or_key_that_no_server_could_use_is_not_recorded(tmp_path: Path, wrong: r.EndpointRequest) -> None:
    async def work(site: Site) -> None:
        with pytest.raises(Invalid):
            await service(site).register(ADA, wrong)
        assert site.context.registry.endpoints() == []

    with_site(tmp_path, work)


def test_of_two_servers_that_register_a_name_at_once_the_first_in_the_log_wins(tmp_path: Path) -> None:
    async def work(first: Site, second: Site) -> None:
        async def other() -> None:
            await service(first).register(ADA, request())

        just_before_record(second, other)
        with pytest.raises(Conflict, match="through another server just now"):
            await service(second).register(ADA, request())
        await first.context.sync_registry()
        for site in (first, second):
            one, two = sorted(site.context.registry.endpoints(), key=lambda e: e.revoked)
            assert (one.revoked, two.revoked) == (False, True)
            assert site.context.registry.named("laptop", "ada") == one

    with_two_sites(tmp_path, work)


# ---------------------------------------------------------------- look up


def test_an_endpoint_is_seen_by_its_owner_and_admins(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        endpoints, e = service(site), await site.add_endpoint("laptop", "ada")
        assert [i.name for i in await endpoints.all(ADA)] == [i.name for i in await endpoints.all(ADMIN)] == ["laptop"]
        assert await endpoints.all(BOB) == []
        assert (await endpoints.get(ADMIN, "laptop")).id == e.id
        with pytest.raises(NotFound, match=f"no endpoint '{e.id}'"):
            await endpoints.get(BOB, e.id)
        with pytest.raises(NotFound, match="no endpoint 'laptop'"):
            await endpoints.get(BOB, "laptop")

    with_site(tmp_path, work)


def test_pages_of_many_endpoints_have_each_of_them_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(site: Site) -> None:
        records = [
            EndpointRecord(VERSION, f"ep_{n:03}", f"node-{n % 70:02}", ("ada", "bob")[n % 2], curve.make_keys().public)
            for n in range(MANY_ENDPOINTS + 40)
        ]
        await site.context.record([(f"endpoint:{e.id}", e) for e in records])
        await site.context.registry.reload(site.context.view)
        endpoints, seen, page = service(site), [], [""]
        described, real = set[int](), endpoints._info

        def info(*given: Any) -> r.EndpointInfo:
            described.add(threading.get_ident())
            return real(*given)

        monkeypatch.setattr(endpoints, "_info", info)
        while page:
            page = [e.id for e in await endpoints.all(ADMIN, page[-1], 50)]
            seen += page
        whole = await endpoints.all(ADMIN)
        assert seen == [e.id for e in whole]
        assert sorted(seen) == [e.id for e in records]
        assert threading.get_ident() not in described, "the loop serves others meanwhile"
        assert {e.owner for e in await endpoints.all(BOB, limit=9)} == {"bob"}
        for caller, after in ((BOB, "ep_000"), (ADA, "ep_none")):
            with pytest.raises(NotFound, match=after):
                await endpoints.all(caller, after)

    with_site(tmp_path, work)


def test_an_endpoint_with_a_channel_that_never_connected_is_never(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        e = await site.add_endpoint("laptop")
        site.bridge.open(e.id)
        await site.add_task(e)
        info = await service(site).get(ADA, "laptop")
        assert (info.state, info.waiting, info.workers) == ("never", 1, 0)

    with_site(tmp_path, work)


def test_an_endpoint_of_another_server_is_described_by_its_last_report(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        e = await site.add_endpoint("laptop")
        site.ownership.elsewhere[e.id] = PEER
        report = Usage(VERSION, e.id, now_us(), workers=4, busy=3, queued=2, spooled=0, host="node1")
        await site.context.applied(await site.log.append(REPORTS, [Record(encode(report))]))
        info = await service(site).get(ADA, "laptop")
        assert (info.state, info.workers, info.busy, info.host) == ("connected", 4, 3, "node1")
        assert info.why == f"the server {PEER} acts for it"

    with_site(tmp_path, work, shared=True)


def test_the_owning_server_is_asked_with_the_callers_token_only(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        e = await site.add_endpoint("laptop")
        site.ownership.elsewhere[e.id] = PEER
        live = r.EndpointInfo(id=e.id, name="laptop", owner="ada", state="connected", workers=9)
        site.peers.answers["endpoint", PEER] = live
        assert (await service(site).get(ADA, "laptop")).state == "never"
        assert await service(site).get(ADA, "laptop", "Bearer t") == live
        assert site.peers.requests == [("endpoint", PEER, e.id)]

    with_site(tmp_path, work)


# ---------------------------------------------------------------- revoke


def test_open_tasks_of_a_revoked_endpoint_are_closed_as_refused(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        e, other = await site.add_endpoint("laptop"), await site.add_endpoint("desktop")
        done, waiting, kept = await site.add_task(e), await site.add_task(e), await site.add_task(other)
        await site.end_task(done)
        await service(site).revoke(ADA, "laptop")
        states = await site.view.states([done, waiting, kept])
        assert [states[i][0] for i in (done, waiting, kept)] == [State.SUCCEEDED, State.REFUSED, State.WAITING]
        assert (await service(site).get(ADMIN, "desktop")).waiting == 1
        with pytest.raises(NotFound, match="was revoked"):
            await service(site).get(ADA, "laptop")

    with_site(tmp_path, work)


def test_the_owning_server_closes_the_tasks_of_a_revoked_endpoint(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        e = await site.add_endpoint("laptop")
        site.ownership.elsewhere[e.id] = PEER
        task = await site.add_task(e)
        await service(site).revoke(ADA, "laptop")
        assert (await site.view.states([task]))[task][0] is State.WAITING
        assert site.context.registry.is_revoked("laptop", "ada")

    with_site(tmp_path, work)


def test_nobody_revokes_the_endpoint_of_another(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        e = await site.add_endpoint("laptop")
        with pytest.raises(NotFound):
            await service(site).revoke(BOB, e.id)
        assert not site.context.registry.is_revoked("laptop", "ada")

    with_site(tmp_path, work)
