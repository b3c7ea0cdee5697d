"""A login that is defined here works through the real HTTP API, beside the login by tokens."""

from __future__ import annotations

import asyncio

from oncue.dispatcher.auth.base import AuthContext, Credentials
from oncue.dispatcher.auth.catalog import AUTHENTICATORS
from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.http.streams import Streams
from oncue.errors import Unauthorized
from tests.unit.dispatcher.http.api_backend import Client, with_server


class BadgeLogin:
    """`Authorization: Bearer badge:NAME`, for people whose badge the gate knows. Asks the gate once for each badge."""

    def __init__(self) -> None:
        self.people = {"badge:marie": frozenset({"user"}), "badge:guest": frozenset({"emit"})}
        self.asked: list[str] = []
        self.closed = False

    async def authenticate(self, credentials: Credentials) -> Caller | None:
        badge = credentials.bearer
        if not badge.startswith("badge:"):
            return None
        self.asked.append(badge)
        await asyncio.sleep(0)
        if badge not in self.people:
            raise Unauthorized(f"the gate does not know {badge}", remedy="ask at the gate for a token")
        return Caller(badge.removeprefix("badge:"), self.people[badge], badge)

    def is_valid(self, credentials: Credentials) -> bool:
        return credentials.bearer in self.people

    async def close(self) -> None:
        self.closed = True


def test_a_request_with_a_new_kind_of_login() -> None:
    login = BadgeLogin()

    async def test(c: Client) -> None:
        status, me, _ = await c.ask("GET", "/v1/me", token="badge:marie")
        assert (status, me["subject"], me["scopes"]) == (200, "marie", ["user"])
        status, info, _ = await c.ask("POST", "/v1/tasks", token="badge:marie", json={"function": "f"})
        assert (status, info["owner"]) == (202, "marie")
        assert (await c.ask("GET", "/v1/tasks", token="badge:guest"))[0] == 403
        assert login.asked == ["badge:marie", "badge:marie", "badge:guest"]

        status, problem, headers = await c.ask("GET", "/v1/me", token="badge:nobody")
        assert (status, problem["detail"]) == (401, "the gate does not know badge:nobody")
        assert headers["WWW-Authenticate"] == 'Bearer realm="oncue", error="invalid_token"'

        assert (await c.ask("GET", "/v1/me", token="user"))[1]["subject"] == "ada"  # by its token
        assert (await c.ask("GET", "/v1/me", token="neither"))[1]["detail"] == "this is not an oncue token"

    with_server(test, logins=(*AUTHENTICATORS, lambda context: login))
    assert login.closed


def test_a_login_that_the_settings_do_not_enable_is_left_out() -> None:
    seen: list[AuthContext] = []

    def disabled(context: AuthContext) -> None:
        seen.append(context)

    async def test(c: Client) -> None:
        assert (await c.ask("GET", "/v1/me", token="user"))[0] == 200
        assert (await c.ask("GET", "/v1/me", token="badge:marie"))[0] == 401

    with_server(test, logins=(disabled, *AUTHENTICATORS))
    assert len(seen) == 1


def test_a_stream_ends_when_its_login_is_not_valid_any_more() -> None:
    login = BadgeLogin()

    async def test(c: Client) -> None:
        async with c.request("GET", "/v1/outcomes?stream=s", token="badge:marie") as answer:
            assert answer.status == 200
            del login.people["badge:marie"]
            assert await asyncio.wait_for(answer.content.read(), 10) == b""

    with_server(test, streams=lambda: Streams(sweep_s=0.05), logins=(lambda context: login,))
