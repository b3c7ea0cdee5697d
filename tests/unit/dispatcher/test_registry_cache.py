"""RegistryCache: endpoints by name and id, for callers and for rules."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.registry_cache import RegistryCache
from oncue.errors import NotFound
from oncue.protocol.records import VERSION, EndpointRecord, TokenRecord
from oncue.protocol.topics import REGISTRY, TaskTopics
from tests.unit.view.view_harness import ViewHarness, run

ADA, BOB = Caller("ada", frozenset({"user"})), Caller("bob", frozenset({"user"}))
ADMIN = Caller("root", frozenset({"admin"}))
LAPTOP = EndpointRecord(VERSION, "e1", "laptop", "ada", b"k1", 1)
CLUSTER = EndpointRecord(VERSION, "e2", "cluster", "bob", b"k2", 2)
OLD = EndpointRecord(VERSION, "e3", "old", "ada", b"k3", 3, revoked=True)


def cache_of(folder: Path, *records: EndpointRecord | TokenRecord, topics: int = 0) -> RegistryCache:
    """Return the cache after a reload from a view with these records."""
    cache = RegistryCache(TaskTopics(topics))

    async def work(harness: ViewHarness) -> None:
        await harness.append(REGISTRY, *records)
        await cache.reload(harness.view)

    run(folder, work)
    return cache


def test_an_endpoint_is_found_by_its_owners_name_or_its_id(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, LAPTOP, CLUSTER, OLD)
    assert cache.find_endpoint(ADA, "laptop") == cache.find_endpoint(ADA, "e1") == LAPTOP
    assert cache.find_endpoint(ADMIN, "laptop") == LAPTOP
    with pytest.raises(NotFound, match="yours are: cluster"):
        cache.find_endpoint(BOB, "laptop")
    with pytest.raises(NotFound, match="there is no endpoint 'e1'"):
        cache.find_endpoint(BOB, "e1")


def test_the_callers_own_endpoint_comes_before_anothers_of_that_name(tmp_path: Path) -> None:
    own = EndpointRecord(VERSION, "e9", "laptop", "root", b"k9", 9)
    cache = cache_of(tmp_path, LAPTOP, own)
    assert cache.find_endpoint(ADMIN, "laptop") == own


def test_a_revoked_endpoint_is_not_found_and_its_owner_learns_why(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, LAPTOP, OLD)
    for name in ("old", "e3"):
        with pytest.raises(NotFound, match=r"was revoked(.|\n)*register old; or use another: laptop"):
            cache.find_endpoint(ADA, name)
        assert cache.is_revoked(name, "ada")
        assert not cache.is_revoked(name, "bob")
    with pytest.raises(NotFound, match="there is no endpoint 'old'"):
        cache.find_endpoint(BOB, "old")
    assert cache.endpoint("e3") == OLD


def test_of_two_endpoints_with_one_name_the_first_counts_until_it_is_revoked(tmp_path: Path) -> None:
    second = EndpointRecord(VERSION, "e4", "laptop", "ada", b"k4", 4)
    both = cache_of(tmp_path / "both", LAPTOP, second)
    one = cache_of(tmp_path / "one", LAPTOP, second, msgspec.structs.replace(LAPTOP, revoked=True))
    assert both.named("laptop", "ada") == LAPTOP
    assert one.named("laptop", "ada") == second


def test_a_rule_uses_the_endpoints_of_its_owner_only(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, LAPTOP, CLUSTER)
    assert [cache.endpoint_id(name, "ada") for name in ("laptop", "e1", "cluster", "e2")] == ["e1", "e1", None, None]
    assert [cache.endpoint_name(i) for i in ("e1", "e8")] == ["laptop", "e8"]


def test_endpoints_share_the_topics_of_the_setting(tmp_path: Path) -> None:
    own, shared = cache_of(tmp_path / "a", LAPTOP, CLUSTER), cache_of(tmp_path / "b", LAPTOP, CLUSTER, topics=1)
    assert len(own.tasks_topics()) == 2
    assert shared.tasks_topics() == [shared.tasks_topic("e1")] == [shared.tasks_topic("e2")]


def test_a_token_is_found_by_its_hash_also_when_it_is_revoked(tmp_path: Path) -> None:
    token = TokenRecord(VERSION, "tok_1", "h" * 64, "ada", ("user",), revoked=True)
    cache = cache_of(tmp_path, token)
    assert cache.token("h" * 64) == token
    assert cache.tokens() == [token]
    assert cache.token("0" * 64) is None


def test_a_reload_forgets_nothing_that_the_view_has(tmp_path: Path) -> None:
    async def main() -> None:
        harness, cache = ViewHarness(tmp_path / "view.db"), RegistryCache(TaskTopics())
        try:
            await harness.append(REGISTRY, LAPTOP)
            await cache.reload(harness.view)
            await harness.append(REGISTRY, CLUSTER)
            assert cache.endpoint("e2") is None
            await cache.reload(harness.view)
            assert {e.id for e in cache.endpoints()} == {"e1", "e2"}
        finally:
            await harness.view.close()

    asyncio.run(main())
