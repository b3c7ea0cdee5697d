"""Client: events, problems, and its use as a context manager."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from oncue import errors
from oncue.client import Client
from tests.unit.client.client_server import Server, double, serving, wait_until_unreachable


def test_a_request_that_comes_too_soon_is_sent_again(client: Client, server: Server) -> None:
    server.world.limited = 1
    assert client.emit(type="t", source="s", id="mine").id == "mine"
    assert [e["id"] for e in server.world.events] == ["mine"]
    server.world.limited = 1
    with pytest.raises(errors.RateLimited):
        client.session.http.request("POST", "/v1/events", b"{}", limited_s=0)


def test_emit_and_problems(client: Client) -> None:
    assert client.emit(type="t", source="s", data={"a": 1}).count == 1
    assert client.emit(type="t", source="s", data=b"\x00").count == 1
    assert client.emit(type="t", source="s", id="mine").id == "mine"
    assert len(client.emit(type="t", source="s").id) == 32
    with pytest.raises(errors.Invalid, match=r"data\.a: nan"):
        client.emit(type="t", source="s", data={"a": float("nan")})
    with pytest.raises(errors.Invalid, match="cannot be written as JSON"):
        client.events.emit({"id": "1", "type": "t", "source": "s", "run": object()})
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(errors.Invalid, match="cannot be written as JSON"):
        client.emit(type="t", source="s", data=endless)
    with pytest.raises(errors.NotFound) as caught:
        client.tasks.get("00" * 16)
    assert caught.value.remedy == "look at the list"


def test_default_time_of_an_event_is_now(client: Client, server: Server) -> None:
    before = datetime.now(UTC)
    client.emit(type="t", source="s")
    client.emit(type="t", source="s", time="2026-11-23T20:59:29.5Z")
    client.emit(type="t", source="s", time=datetime(2026, 11, 23, 21, 59, 29, tzinfo=timezone(timedelta(hours=1))))
    now, *given = (e["time"] for e in server.world.events)
    assert now.endswith("Z")
    assert before <= datetime.fromisoformat(now) <= datetime.now(UTC)
    assert given == ["2026-11-23T20:59:29.5Z", "2026-11-23T20:59:29.000000Z"]


def test_exception_of_the_block_gets_a_note_of_unaccepted_tasks() -> None:
    with serving() as server:
        client = Client(server.url, "t", patience=10, linger=0.1)
        assert client.me.subject == "ada"
        client.submit(double, 1).result(10)
    with pytest.raises(KeyError, match="mine") as caught, client:  # noqa: PT012
        lost = client.submit(double, 2)
        wait_until_unreachable(client)
        raise KeyError("mine")
    (note,) = caught.value.__notes__
    assert (
        "1 submitted task was not accepted: the client was closed before the server had accepted it; nothing " in note
    )
    assert lost.id in note
