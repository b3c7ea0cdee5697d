"""Tokens: their form, the login by them, and the limits on new ones."""

from __future__ import annotations

import asyncio
import base64

import pytest

from oncue.dispatcher.auth.base import Credentials
from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.auth.tokens import TokenAuthenticator, check_token_request, hash_token, new_token
from oncue.errors import Forbidden, Invalid, Unauthorized
from oncue.protocol.api import TokenRequest
from oncue.protocol.records import TokenRecord


async def nothing_new() -> bool:
    return False


def test_a_token_has_256_random_bits_and_is_stored_as_its_hash() -> None:
    token, digest = new_token()
    assert token.startswith("oncue_")
    assert len(base64.urlsafe_b64decode(token.removeprefix("oncue_") + "=")) == 32
    assert digest == hash_token(token)
    assert len({new_token()[0] for _ in range(100)}) == 100


def test_the_caller_of_a_token_is_made_once() -> None:
    token, digest = new_token()
    login = TokenAuthenticator({digest: TokenRecord(1, "t", digest, "ada", ("user",))}.get, nothing_new)
    first = asyncio.run(login.authenticate(Credentials(f"bearer  {token}")))
    assert first == Caller("ada", frozenset({"user"}), "t")
    assert asyncio.run(login.authenticate(Credentials(f"Bearer {token}"))) is first
    assert login.is_valid(Credentials(f"Bearer {token}"))


def test_credentials_of_another_kind_are_left_to_other_logins() -> None:
    login = TokenAuthenticator({}.get, nothing_new)
    for header in (None, "Basic abc", "Bearer", "Bearer eyJhbGciOi", "Bearer oncue_" + "x" * 500, "Bearer oncue_ä"):
        assert asyncio.run(login.authenticate(Credentials(header))) is None
        assert not login.is_valid(Credentials(header))


def test_an_unknown_token_is_looked_up_again_after_the_registry_was_synced() -> None:
    token, digest = new_token()
    records: dict[str, TokenRecord] = {}

    async def another_server_registered_it() -> bool:
        records[digest] = TokenRecord(1, "t", digest, "ada", ("user",))
        return True

    credentials = Credentials(f"Bearer {token}")
    with pytest.raises(Unauthorized, match="not known"):
        asyncio.run(TokenAuthenticator(records.get, nothing_new).authenticate(credentials))
    login = TokenAuthenticator(records.get, another_server_registered_it)
    assert not login.is_valid(credentials)  # it does not sync
    caller = asyncio.run(login.authenticate(credentials))
    assert caller is not None
    assert caller.subject == "ada"


def test_nobody_makes_a_token_that_can_do_more() -> None:
    admin, user = Caller("root", frozenset({"admin"})), Caller("ada", frozenset({"user"}))
    check_token_request(admin, TokenRequest(name="a", scopes=["admin"], subject="bob"))
    check_token_request(user, TokenRequest(name="a", scopes=["user", "emit", "read"], subject="ada"))
    for request in (TokenRequest(name="a", scopes=[]), TokenRequest(name="a", expires_s=-1)):
        with pytest.raises(Invalid):
            check_token_request(user, request)
    for request in (TokenRequest(name="a", scopes=["admin"]), TokenRequest(name="a", scopes=["user"], subject="bob")):
        with pytest.raises(Forbidden):
            check_token_request(user, request)
