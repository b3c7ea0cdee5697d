"""Bodies with as many values as their bytes allow: refused, or decoded beside everybody else's work."""

# ruff: noqa: E501  (a table: a case a line)

from __future__ import annotations

import json
from collections.abc import Callable

import msgspec
import pytest

from oncue.protocol import payload
from tests.e2e.running import Answer, System
from tests.security.stall import check_no_stall

MIB = 1 << 20
MSGPACK = {"Content-Type": "application/msgpack"}
JSON = {"Content-Type": "application/json"}
BATCH = {"Content-Type": "application/cloudevents-batch+json"}
CALLED = {"function": "f", "endpoint": "local"}


def calls(inside: bytes, count: int) -> bytes:
    """Return a batch in JSON with so many calls."""
    return b'{"function":"f","endpoint":"local","calls":[' + b",".join([inside] * count) + b"]}"


def packed(**fields: object) -> bytes:
    return msgspec.msgpack.encode(CALLED | fields)


ID = "0" * 31 + "1"
# (what, path, headers, body, status)
HOSTILE: list[tuple[str, str, dict[str, str], Callable[[], bytes], int]] = [
    ("calls", "/v1/tasks/batch", JSON, lambda: calls(b"[[],{}]", 1_900_000), 413),
    ("more calls", "/v1/tasks/batch", JSON, lambda: calls(b"[[],{}]", 8_000_000), 413),
    ("one wide call", "/v1/tasks/batch", JSON, lambda: calls(b"[[" + b"{}," * 4_000_000 + b"1],{}]", 1), 413),
    ("calls in msgpack", "/v1/tasks/batch", MSGPACK, lambda: packed(calls=[[[], {}]] * 16_000_000), 413),
    ("a wide call in msgpack", "/v1/tasks/batch", MSGPACK, lambda: packed(calls=[[[[]] * 1_500_000, {}]]), 413),
    ("a wider call in msgpack", "/v1/tasks/batch", MSGPACK, lambda: packed(calls=[[[[]] * 50_000_000, {}]]), 413),
    ("payloads", "/v1/tasks/batch", MSGPACK, lambda: packed(payloads=[b""] * 30_000_000), 413),
    ("payloads in JSON", "/v1/tasks/batch", JSON, lambda: b'{"function":"f","payloads":[' + b'"",' * 5_000_000 + b'""]}', 413),
    ("arguments", "/v1/tasks", JSON, lambda: b'{"function":"f","args":[' + b"{}," * 1_300_000 + b"{}]}", 413),
    ("more arguments", "/v1/tasks", JSON, lambda: b'{"function":"f","args":[' + b"{}," * 20_000_000 + b"{}]}", 413),
    ("digits", "/v1/tasks", JSON, lambda: b'{"function":"f","args":[' + b"1" * 4_000_000 + b"]}", 422),
    ("event data", "/v1/events", JSON, lambda: b'{"type":"a","source":"/b","data":[' + b"[]," * 130_000 + b"1]}", 202),
    ("more event data", "/v1/events", JSON, lambda: b'{"type":"a","source":"/b","data":[' + b"[]," * 340_000 + b"1]}", 413),
    ("no events", "/v1/events", BATCH, lambda: b"[" + b"1," * 8_000_000 + b"1]", 413),
    ("wrong events", "/v1/events", BATCH, lambda: b"[" + b"{}," * 500_000 + b"1]", 422),
    ("an event to explain", "/v1/rules/a/explain", JSON, lambda: b'{"event":{"data":[' + b"[]," * 1_300_000 + b"1]}}", 413),
    ("rule files", "/v1/rules", JSON, lambda: json.dumps({"files": [{"label": "a", "text": ""}] * 450_000}).encode(), 413),
    ("functions of rules", "/v1/rules", JSON, lambda: json.dumps({"files": [], "functions": {str(i): "" for i in range(900_000)}}).encode(), 413),
    ("scopes", "/v1/tokens", JSON, lambda: json.dumps({"name": "a", "scopes": ["user"] * 5_000_000}).encode(), 413),
    ("labels", "/v1/endpoints", JSON, lambda: json.dumps({"name": "a", "public_key": "", "labels": {str(i): "" for i in range(40_000)}}).encode(), 413),
    ("a function", "/v1/functions", JSON, lambda: b'{"name":"f","body":"' + b"YWFh" * 3_000_000 + b'"}', 422),
    ("a larger function", "/v1/functions", JSON, lambda: b'{"name":"f","body":"' + b"YWFh" * 12_000_000 + b'"}', 413),
    ("a function in msgpack", "/v1/functions", MSGPACK, lambda: msgspec.msgpack.encode({"name": "f", "body": b"x" * 60_000_000}), 422),
    ("ids", "/v1/tasks/outcomes", JSON, lambda: json.dumps({"ids": [ID] * 65_536}).encode(), 200),
    ("more ids", "/v1/tasks/outcomes", JSON, lambda: json.dumps({"ids": [ID] * 100_000}).encode(), 413),
    ("ids in msgpack", "/v1/tasks/outcomes", MSGPACK, lambda: msgspec.msgpack.encode({"ids": [b"\0" * 16] * 65_536}), 200),
    ("ids to cancel", "/v1/tasks/cancel", JSON, lambda: json.dumps({"tasks": [ID] * 1_000_000}).encode(), 413),
    ("letters", "/v1/dead/dismiss", JSON, lambda: json.dumps({"letters": [1] * 150_000}).encode(), 422),
    ("a long field", "/v1/tasks", JSON, lambda: b'{"' + b"x" * 4_000_000 + b'":1}', 422),
    ("a long name", "/v1/tasks", JSON, lambda: b'{"function":"' + b"x" * 4_000_000 + b'"}', 422),
    ("a long endpoint", "/v1/tasks/batch", JSON, lambda: b'{"function":"f","endpoint":"' + b"x" * 15_000_000 + b'","calls":[[[],{}]]}', 422),
    ("a long id", "/v1/tasks/cancel", JSON, lambda: b'{"tasks":["' + b"x" * 4_000_000 + b'"]}', 422),
    ("a long type", "/v1/events", JSON, lambda: b'{"source":"/b","type":"' + b"x" * 1_000_000 + b'"}', 202),
    ("a long event", "/v1/events", {"Content-Type": "application/cloudevents+json"}, lambda: b'{"' + b"X" * 1_000_000 + b'":1}', 422),
    ("a long scope", "/v1/tokens", JSON, lambda: b'{"name":"a","scopes":["' + b"x" * 200_000 + b'"]}', 422),
    ("nesting", "/v1/tasks", JSON, lambda: b'{"function":"f","args":' + b"[" * 200_000, 400),
]  # fmt: skip


@pytest.mark.parametrize(("path", "headers", "make", "status"), [h[1:] for h in HOSTILE], ids=[h[0] for h in HOSTILE])
def test_a_dear_body_holds_nobody(
    served: System, path: str, headers: dict[str, str], make: Callable[[], bytes], status: int
) -> None:
    body = make()
    answers = []

    def attack() -> None:
        try:
            answers.append(served.http("POST", path, body, headers))
        except ConnectionError:  # reset while the body was sent: it is refused by its length
            assert status == 413

    check_no_stall(served.local["url"], attack, worst=0.3)

    for answer in answers:
        assert answer.status == status, answer.body[:500]
        assert len(answer.body) < 100_000
        assert status < 400 or answer.json["remedy"] or status == 422


@pytest.fixture(scope="module")
def add(served: System) -> dict[str, str]:
    """Return the fields of a batch that name a function of two numbers."""
    served.write("adding.py", "def add(a, b):\n    return a + b\n")
    served.oncue("functions", "register", "adding.py:add")
    return {"function": "add", "endpoint": "local"}


@pytest.mark.parametrize("coding", ["payloads", "calls", "calls in msgpack", "few calls"])
def test_large_batches_are_taken(served: System, add: dict[str, str], coding: str) -> None:
    count = {"payloads": 65_536, "calls": 40_000, "calls in msgpack": 20_000, "few calls": 3}[coding]
    if coding == "payloads":
        headers, body = MSGPACK, msgspec.msgpack.encode(add | {"payloads": [payload.pack_args((1, 2), {})] * count})
    elif coding == "calls in msgpack":
        headers, body = MSGPACK, msgspec.msgpack.encode(add | {"calls": [[[1, 2], {}]] * count})
    else:
        headers, body = JSON, json.dumps(add | {"calls": [[[1, 2], {}]] * count}).encode()

    def attack() -> None:
        answers.append(served.http("POST", "/v1/tasks/batch", body, headers))

    answers: list[Answer] = []
    check_no_stall(served.local["url"], attack, worst=0.3, endpoint="local", token=served.local["token"])

    assert {a.status for a in answers} == {202}, answers
    last = msgspec.msgpack.decode if headers is MSGPACK else json.loads
    accepted = last(answers[-1].body)
    assert accepted["count"] == count
    of_last = f"{int(accepted['first'], 16) + count - 1:032x}"
    served.await_true(
        lambda: served.http("GET", f"/v1/tasks/{of_last}").json.get("value") == 3, "the last call has run", 120
    )


def test_a_clients_batch_of_large_arguments_is_taken(served: System) -> None:
    """The client's batches have 8 MiB, of which each call may have 256 KiB."""
    texts = [str(i) * 200_000 for i in range(9)] * 6
    with served.client() as client:
        tasks = client.map(len, texts)
        assert client.gather(tasks, 120) == [200_000] * len(texts)
