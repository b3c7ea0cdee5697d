"""Tokens that make tokens: none outlives or exceeds the one that made it."""

from __future__ import annotations

import http.client
import time
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.e2e.running import System


def ask(system: System, method: str, path: str, token: str, body: Any = None) -> Any:
    return system.http(method, path, body, token=token)


def made(system: System, token: str, **fields: Any) -> dict[str, Any]:
    answer = ask(system, "POST", "/v1/tokens", token, {"name": "t", **fields})
    assert answer.status == 201, answer
    return dict(answer.json)


@pytest.mark.parametrize("scope", ["admin", "user", "emit", "read"])
@pytest.mark.parametrize("wanted", ["admin", "user", "emit", "read"])
def test_no_token_makes_one_that_can_do_more(system: System, scope: str, wanted: str) -> None:
    token = made(system, system.local["token"], scopes=[scope], subject="ann")["token"]
    answer = ask(system, "POST", "/v1/tokens", token, {"name": "t", "scopes": [wanted], "subject": "ann"})
    allowed = {"admin": ("admin", "user", "emit", "read"), "user": ("user", "emit", "read")}.get(scope, ())
    assert answer.status == (201 if wanted in allowed else 403)


def test_a_stolen_token_leaves_nothing_behind(system: System) -> None:
    stolen = made(system, system.local["token"], subject="ann", expires_s=3600)
    children = [made(system, stolen["token"]) for _ in range(3)]
    children += [made(system, child["token"]) for child in children]
    key = {"name": "backdoor", "public_key": "k" * 40}
    assert ask(system, "POST", "/v1/endpoints", children[-1]["token"], key).status == 201
    assert all(child["expires_us"] == stolen["expires_us"] for child in children)
    longer = ask(system, "POST", "/v1/tokens", stolen["token"], {"name": "t", "expires_s": 7200})
    assert longer.status == 403

    shown = system.oncue("tokens", "revoke", stolen["id"], "--endpoints").stdout

    for child in (stolen, *children):
        assert child["id"] in shown
        assert ask(system, "GET", "/v1/me", child["token"]).status == 401
    assert "backdoor" in shown
    assert system.http("GET", "/v1/endpoints/backdoor").status == 404


def test_a_childs_stream_ends_with_its_maker(system: System) -> None:
    maker = made(system, system.local["token"], subject="ben")
    child = made(system, maker["token"])
    parts = urlsplit(system.local["url"])
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    connection.request("GET", "/v1/live", headers={"Authorization": f"Bearer {child['token']}"})
    stream = connection.getresponse()
    assert stream.status == 200

    system.oncue("tokens", "revoke", maker["id"])
    began = time.monotonic()
    stream.read()  # to its end

    assert time.monotonic() - began < 15
    connection.close()
