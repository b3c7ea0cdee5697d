"""RegistryCache: endpoints by name and id, for callers and for rules."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.registry_cache import RegistryCache
from oncue.errors import NotFound
from oncue.log import Record
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


def test_reloads_step_by_step_know_what_one_reload_knows(tmp_path: Path) -> None:
    """Changes, revocations and removed records, in any order; each reload reads only what is new."""
    chance = random.Random(7)

    async def main() -> None:
        harness, cache = ViewHarness(tmp_path / "view.db"), RegistryCache(TaskTopics())
        read: list[int] = []
        revoked: set[int] = set()
        real = harness.view.newer_endpoints

        async def counted(after: int) -> Any:
            found = await real(after)
            read.append(len(found.records))
            return found

        harness.view.newer_endpoints = counted  # type: ignore[method-assign]
        try:
            for n in range(120):
                if chance.random() < 0.5:
                    endpoint = some_endpoint(chance, revoked)
                    await harness.append(REGISTRY, endpoint, key=endpoint.id.encode())
                else:
                    token = some_token(chance)
                    await harness.append(REGISTRY, token, key=token.id.encode())
                if chance.random() < 0.5:
                    await asyncio.gather(*(cache.reload(harness.view) for _ in range(chance.randint(1, 3))))
                    assert max(read) <= 20, "a reload reads what is new"
                    read.clear()
                    assert await known(cache) == await known_anew(harness), n
        finally:
            await harness.view.close()

    async def known_anew(harness: ViewHarness) -> dict[str, Any]:
        fresh = RegistryCache(TaskTopics())
        await fresh.reload(harness.view)
        return await known(fresh)

    async def known(cache: RegistryCache) -> dict[str, Any]:
        pairs = [(name, owner) for name in ("a", "b", "e1", "e2") for owner in ("ada", "bob")]
        return {
            "endpoints": cache.endpoints(),
            "named": [(cache.named(*p), cache.endpoint_id(*p), cache.is_revoked(*p)) for p in pairs],
            "keys": [sorted(e.id for e in cache.with_key(b"k%d" % n)) for n in range(4)],
            "counts": [cache.endpoint_counts(owner) for owner in ("ada", "bob")],
            "tokens": sorted(cache.tokens(), key=lambda t: t.id),
            "hashes": [cache.token(f"h{n}") for n in range(12)],
            "of": [sorted(t.id for t in cache.tokens_of(owner)) for owner in ("ada", "bob")],
        }

    asyncio.run(main())


def some_endpoint(chance: random.Random, revoked: set[int]) -> EndpointRecord:
    n = chance.randrange(12)
    if chance.random() < 0.2:
        revoked.add(n)
    owner = ("ada", "bob")[n % 2]
    return EndpointRecord(VERSION, f"e{n}", "ab"[n % 3 == 0], owner, b"k%d" % chance.randrange(4), 1, n in revoked)


def some_token(chance: random.Random) -> TokenRecord:
    """A token that one with a lower number may have made."""
    n = chance.randrange(12)
    maker = f"t{n // 2}" if n > 1 else ""
    expires = chance.choice((0, 50, 100))
    return TokenRecord(
        VERSION, f"t{n}", f"h{n}", ("ada", "bob")[n % 2], ("user",), expires, chance.random() < 0.3, parent=maker
    )


def test_removed_records_are_forgotten(tmp_path: Path) -> None:
    async def main() -> None:
        harness, cache = ViewHarness(tmp_path / "view.db"), RegistryCache(TaskTopics())
        token = TokenRecord(VERSION, "tok_1", "h" * 64, "ada", ("user",))
        try:
            for record, key in ((LAPTOP, b"a"), (CLUSTER, b"b"), (token, b"c")):
                await harness.append(REGISTRY, record, key=key)
            await cache.reload(harness.view)
            await harness.append(REGISTRY, Record(b"", key=b"a"), Record(b"", key=b"c"))
            await cache.reload(harness.view)
            assert (cache.endpoints(), cache.tokens(), cache.token("h" * 64)) == ([CLUSTER], [], None)
            assert cache.named("laptop", "ada") is None
        finally:
            await harness.view.close()

    asyncio.run(main())
