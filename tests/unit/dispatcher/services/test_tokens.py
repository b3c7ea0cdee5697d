"""TokenService: creation, visibility, revocation, and the token of the person who started the server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oncue.dispatcher.auth.tokens import hash_token
from oncue.dispatcher.services.tokens import TokenService
from oncue.errors import Forbidden, NotFound
from oncue.protocol import api as r
from tests.unit.dispatcher.services.service_site import ADA, ADMIN, BOB, Site, with_site


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
