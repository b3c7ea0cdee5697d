"""Bodies that are dear to decode: nobody else waits for them."""

from __future__ import annotations

import gzip
import json
import zlib

import psutil
import pytest

from tests.e2e.running import System
from tests.security.raw_http import exchange, head, in_threads, status
from tests.security.stall import check_no_stall

MIB = 1 << 20
JSON = "application/json"


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """Return 4 MB of gzip that become 4 GB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(16 * MIB)
    return b"".join(packer.compress(zeros) for _ in range(256)) + packer.flush()


# Refused: no token, no route, no such method, no body wanted, wrong type; unknown coding; a hook that does not exist.
REFUSED = [
    ("POST", "/v1/tasks", {}, 401),
    ("POST", "/nothing/here", {}, 404),
    ("PATCH", "/v1/tasks", {}, 405),
    ("POST", "/v1/tasks", {"Authorization": "token", "Content_Type": "text/html"}, 415),
    ("POST", "/hooks/none", {}, 413),
    ("PUT", "/v1/blobs/" + "0" * 64, {"Authorization": "token"}, 415),
    ("POST", "/v1/tasks", {"Authorization": "token", "Content_Type": JSON}, 413),
    ("POST", "/v1/events", {"Authorization": "token", "Content_Type": JSON}, 413),
]


@pytest.mark.parametrize(("method", "path", "headers", "expected"), REFUSED)
@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
def test_a_compressed_body_holds_nothing(
    served: System, bomb: bytes, method: str, path: str, headers: dict[str, str], expected: int, coding: str
) -> None:
    url, token = served.local["url"], served.local["token"]
    sent = {k: f"Bearer {token}" if v == "token" else v for k, v in headers.items()}
    request = head(method, path, len(bomb), Content_Encoding=coding, **sent) + bomb
    wanted = 415 if coding != "gzip" and expected == 413 else expected
    before = served.server.memory_info().rss

    def attack() -> None:
        in_threads(4, lambda: answers.append(status(exchange(url, request))))

    answers: list[int] = []
    check_no_stall(url, attack)

    assert set(answers) <= {wanted, 0}, answers  # 0: reset before the answer was read
    assert served.server.memory_info().rss < before + 200 * MIB
    assert served.server.status() != psutil.STATUS_ZOMBIE


def test_a_body_that_expands_too_much_is_refused_with_a_remedy(served: System) -> None:
    body = gzip.compress(json.dumps({"function": "f", "args": ["0" * 8 * MIB]}).encode())
    answer = served.http("POST", "/v1/tasks", body, {"Content-Type": JSON, "Content-Encoding": "gzip"})
    assert answer.status == 413
    assert "more than 100 times" in answer.json["detail"]
    assert "without Content-Encoding" in answer.json["remedy"]


def test_an_unknown_coding_is_refused_with_those_that_are_taken(served: System) -> None:
    answer = served.http("POST", "/v1/tasks", b"x", {"Content-Type": JSON, "Content-Encoding": "br"})
    assert answer.status == 415
    assert answer.headers["accept-encoding"] == "gzip, deflate"
    assert "gzip or deflate" in answer.json["remedy"]


@pytest.mark.parametrize("coding", ["gzip", "deflate", "raw deflate", "gzip in parts"])
def test_a_compressed_body_is_taken(served: System, coding: str) -> None:
    event = json.dumps({"type": "packed", "source": "/test", "data": "x" * 1000}).encode()
    if coding == "raw deflate":
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        packed = packer.compress(event) + packer.flush()
    elif coding == "gzip in parts":
        packed = gzip.compress(event[:20]) + gzip.compress(event[20:])
    else:
        packed = gzip.compress(event) if coding == "gzip" else zlib.compress(event)
    answer = served.http(
        "POST",
        "/v1/events",
        packed,
        {"Content-Type": JSON, "Content-Encoding": coding.split()[-1 if "raw" in coding else 0]},
    )
    assert answer.status == 202, answer


@pytest.mark.parametrize(
    "body",
    [b"no gzip", gzip.compress(b"x" * 5000)[:-9], gzip.compress(b"{}") + b"rest", gzip.compress(b"") * 2000],
    ids=["no gzip", "cut", "rest", "many members"],  # the bytes have the time: each process would name them differently
)
def test_a_broken_compressed_body_is_malformed(served: System, body: bytes) -> None:
    answer = served.http("POST", "/v1/tasks", body, {"Content-Type": JSON, "Content-Encoding": "gzip"})
    assert (answer.status, answer.json["code"]) == (400, "malformed"), answer


def test_an_event_nested_too_deeply_is_refused_and_hides_no_other(served: System) -> None:
    """Python cannot decode what is nested several hundred deep; how deep depends on the caller."""
    taken = set()
    for depth in (1, 120, *range(900, 1000, 3)):
        data = "[" * depth + "]" * depth
        body = f'{{"specversion": "1.0", "id": "d{depth}", "source": "/s", "type": "deep", "data": {data}}}'
        answer = served.http("POST", "/v1/events", body.encode(), {"Content-Type": "application/cloudevents+json"})
        assert answer.status in (202, 400, 422), answer
        if answer.status == 202:
            taken.add(f"d{depth}")
    listed = served.http("GET", "/v1/events?type=deep&limit=100")
    assert listed.status == 200, listed
    assert {item["event"]["id"] for item in listed.json["items"]} == taken == {"d1", "d120"}
