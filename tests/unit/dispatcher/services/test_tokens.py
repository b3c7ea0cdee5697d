"""TokenService: creation, visibility, revocation, and the token of the person who started the server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oncue.dispatcher.auth.base import Credentials
from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.auth.tokens import TokenAuthenticator, hash_token
from oncue.dispatcher.registry_cache import effective_tokens
from oncue.dispatcher.services.tokens import TokenService
from oncue.errors import Forbidden, NotFound, Unauthorized
from oncue.protocol import api as r
from oncue.protocol.records import VERSION, EndpointRecord, TokenRecord
from tests.unit.dispatcher.services.service_site import ADA, ADMIN, BOB, Site, with_site


async def nothing_new() -> bool:
    return False


def test_a_token_is_recorded_by_its_hash_only(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        tokens = TokenService(site.context)
        made = await tokens.create(ADA, r.TokenRequest(name="beamline", scopes=["emit"], expires_s=60))
        record = tokens.find(hash_token(made.token))
        assert record is not None
        assert (record.id, record.subject, record.scopes) == (made.id, "ada", ("emit",))
        assert 0 <= record.at_us + 60_000_000 - record.expires_us < 60_000_000
        (listed,) = await tokens.all(ADA)
        assert (listed.id, listed.token) == (made.id, "")

    with_site(tmp_path, work)


def test_only_an_admin_makes_tokens_for_others(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        tokens = TokenService(site.context)
        with pytest.raises(Forbidden):
            await tokens.create(ADA, r.TokenRequest(name="t", subject="bob"))
        with pytest.raises(Forbidden):
            await tokens.create(ADA, r.TokenRequest(name="t", scopes=["admin"]))
        await tokens.create(ADMIN, r.TokenRequest(name="t", subject="bob"))
        assert [t.subject for t in await tokens.all(BOB)] == ["bob"]

    with_site(tmp_path, work)


def test_a_revoked_token_stays_known_as_revoked(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        tokens = TokenService(site.context)
        made = await tokens.create(ADA, r.TokenRequest(name="t"))
        with pytest.raises(NotFound):
            await tokens.revoke(BOB, made.id)
        await tokens.revoke(ADA, made.id)
        record = tokens.find(hash_token(made.token))
        assert record is not None
        assert record.revoked
        with pytest.raises(NotFound, match="no token 'tok_none'"):
            await tokens.revoke(ADMIN, "tok_none")

    with_site(tmp_path, work)


def test_the_local_token_is_kept_until_it_is_revoked(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        tokens, path = TokenService(site.context), tmp_path / "local.json"
        first = await tokens.local_token(path, "S" * 40)
        path.write_text(json.dumps({"token": first}))
        assert await tokens.local_token(path, "S" * 40) == first
        await tokens.revoke(ADMIN, "tok_local")
        second = await tokens.local_token(path, "S" * 40)
        assert second != first
        record = tokens.find(hash_token(second))
        assert record is not None
        assert (record.scopes, record.revoked) == (("admin",), False)

    with_site(tmp_path, work)


@pytest.mark.parametrize("content", ["", "[]", '{"token": 5}', "{}"])
def test_a_damaged_local_json_gives_a_new_token(tmp_path: Path, content: str) -> None:
    async def work(site: Site) -> None:
        path = tmp_path / "local.json"
        path.write_text(content)
        token = await TokenService(site.context).local_token(path, "S" * 40)
        assert token.startswith("oncue_")

    with_site(tmp_path, work)


def test_each_server_of_a_shared_log_has_a_local_token_of_its_own(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        tokens = TokenService(site.context)
        for key in ("a" * 40, "b" * 40):
            await tokens.local_token(tmp_path / "none.json", key)
        assert len({t.id for t in await tokens.all(ADMIN)}) == 2

    with_site(tmp_path, work, shared=True)


# ---------------------------------------------------------------- tokens that were made by tokens


def caller_of(made: r.TokenInfo) -> Caller:
    return Caller(made.subject, frozenset(made.scopes), made.id)


def test_a_token_takes_those_with_it_that_were_made_by_it(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        tokens = TokenService(site.context)
        first = await tokens.create(ADA, r.TokenRequest(name="first"))
        second = await tokens.create(caller_of(first), r.TokenRequest(name="second", scopes=["read"]))
        third = await tokens.create(caller_of(second), r.TokenRequest(name="third", scopes=["read"]))
        other = await tokens.create(ADA, r.TokenRequest(name="other"))

        gone = await tokens.revoke(ADA, first.id)

        assert [(t.name, t.parent, t.revoked) for t in gone.tokens] == [
            ("first", "", True),
            ("second", first.id, True),
            ("third", second.id, True),
        ]
        login = TokenAuthenticator(tokens.find, nothing_new)
        for made in (first, second, third):
            with pytest.raises(Unauthorized, match="revoked"):
                await login.authenticate(Credentials(f"Bearer {made.token}"))
        assert await login.authenticate(Credentials(f"Bearer {other.token}")) is not None

    with_site(tmp_path, work)


def test_a_token_does_not_outlive_the_one_that_made_it(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        tokens = TokenService(site.context)
        first = await tokens.create(ADA, r.TokenRequest(name="first", expires_s=3600))
        for_ever = await tokens.create(caller_of(first), r.TokenRequest(name="for ever"))
        shorter = await tokens.create(caller_of(first), r.TokenRequest(name="shorter", expires_s=60))
        with pytest.raises(Forbidden, match="outlive"):
            await tokens.create(caller_of(first), r.TokenRequest(name="longer", expires_s=7200))
        assert for_ever.expires_us == first.expires_us
        assert shorter.expires_us < first.expires_us

    with_site(tmp_path, work)


def test_a_record_that_outlives_its_maker_is_cut_when_it_is_read(tmp_path: Path) -> None:
    """Such records come from servers of an older version, and from hostile registries."""

    def record(name: str, parent: str = "", expires: int = 0, revoked: bool = False) -> TokenRecord:
        return TokenRecord(VERSION, name, name, "ada", ("user",), expires, revoked, 0, name, parent)

    tokens = [
        record("child", "maker", 9_000),
        record("maker", "", 5_000),
        record("of revoked", "revoked"),
        record("grandchild", "of revoked"),
        record("revoked", revoked=True),
        record("orphan", "nobody", 7),
        record("loop 1", "loop 2"),
        record("loop 2", "loop 1", 5),
    ]
    found = {t.id: (t.expires_us, t.revoked) for t in effective_tokens(tokens)}
    assert found["child"] == (5_000, False)
    assert found["of revoked"] == found["grandchild"] == (0, True)
    assert found["orphan"] == (7, False)
    assert found["loop 1"][0] == 5
    assert len(found) == len(tokens)


def test_endpoints_of_revoked_tokens_are_shown_and_taken_on_request(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        taken: list[str] = []

        async def take(endpoint: EndpointRecord) -> None:
            taken.append(endpoint.name)

        tokens = TokenService(site.context, take)
        for wanted in (False, True):
            made = await tokens.create(ADA, r.TokenRequest(name="t"))
            name = f"cluster-{wanted}"
            record = EndpointRecord(VERSION, "ep_" + name, name, "ada", b"k" * 40, token=made.id)
            await site.context.record([(f"endpoint:{record.id}", record)])
            gone = await tokens.revoke(ADA, made.id, endpoints=wanted)
            assert (gone.endpoints, gone.endpoints_revoked) == ([name], wanted)
        assert taken == ["cluster-True"]

    with_site(tmp_path, work)
