"""A caller cannot store more under one name than was meant to be there."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest

from oncue.dispatcher.services import tokens as token_service
from oncue.functions import FunctionBody
from oncue.protocol.codec import encode
from tests.e2e.running import System
from tests.security.stall import check_no_stall

LONG = "x" * 100_000
KEY = "k" * 40


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/endpoints", {"name": LONG, "public_key": KEY}),
        ("/v1/endpoints", {"name": "e", "public_key": LONG}),
        ("/v1/endpoints", {"name": "e", "public_key": KEY, "labels": {"a": LONG}}),
        ("/v1/endpoints", {"name": "e", "public_key": KEY, "labels": {LONG: "a"}}),
        ("/v1/endpoints", {"name": "e", "public_key": KEY, "labels": {f"l{n}": "" for n in range(10_000)}}),
        ("/v1/tokens", {"name": LONG}),
        ("/v1/tokens", {"name": "t", "subject": LONG}),
        ("/v1/tokens", {"name": "t", "scopes": ["read"] * 10_000}),
        ("/v1/tasks", {"function": "f", "key": LONG}),
        ("/v1/tasks", {"function": "f", "retry": {"on": ["lost"] * 10_000}}),
        ("/v1/tasks/batch", {"function": "f", "stream": LONG, "calls": [[[], {}]]}),
        ("/v1/tasks/batch", {"function": "f", "calls": [[["x" * 300_000], {}]]}),
        ("/v1/tasks/batch", {"function": "f", "calls": [[[], {}]] * 70_000}),
        ("/v1/functions", {"name": LONG, "body": ""}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(str(value)[:40].split()),
)
def test_what_is_too_large_is_refused_by_name(system: System, path: str, body: dict[str, Any]) -> None:
    answer = system.http("POST", path, body)
    assert answer.status in (404, 413, 422), answer
    assert len(answer.body) < 4_000


def test_a_person_has_a_bounded_number_of_tokens(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    assert token_service.TOKENS <= 10_000
    made = 0
    while made <= token_service.TOKENS:
        answer = system.http("POST", "/v1/tokens", {"name": "t", "subject": "greedy"})
        if answer.status != 201:
            break
        made += 1
    assert answer.status == 409, answer
    assert made == token_service.TOKENS
    assert system.http("POST", "/v1/tokens", {"name": "t", "subject": "modest"}).status == 201


def test_a_large_function_does_not_hold_the_server(system: System) -> None:
    source = "def f():\n    return 1\n" + "# x\n" * 2_500_000  # 10 MB

    def register() -> None:
        body = encode(FunctionBody(1, "f", "f", "m", "", source, b"", {}, (), "", "f", True, "m.py"))
        answer = system.http("POST", "/v1/functions", {"name": "large", "body": base64.b64encode(body).decode()})
        assert answer.status < 300, answer.body[:500]
        assert answer.json["id"] == hashlib.sha256(body).hexdigest()

    check_no_stall(system.local["url"], register)
