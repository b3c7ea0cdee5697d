"""Numbers that take long to decode: a body of 7 MB of them took 17 s, an event of 1 MB took 2 s again and again."""

from __future__ import annotations

import pytest

from tests.e2e.running import System
from tests.security.stall import check_no_stall

DEAR = b"1.234500000000000069278e300"  # between two doubles: 68 µs
HALF = b"9007199254740993.0"  # a shorter one: 3 µs
JSON = {"Content-Type": "application/json"}


def many(number: bytes, size: int) -> bytes:
    return b",".join([number] * (size // (len(number) + 1)))


@pytest.mark.parametrize(
    ("path", "head", "size", "tail", "headers"),
    [
        ("/v1/tasks", b'{"function": "f", "args": [', 4_000_000, b"]}", JSON),
        ("/v1/tasks/batch", b'{"function": "f", "calls": [[[', 5_000_000, b"],{}]]}", JSON),
        ("/v1/events", b'{"type": "t", "source": "/s", "data": [', 900_000, b"]}", JSON),
        (
            "/v1/events",
            b"[",
            900_000,
            b"]",
            JSON | {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "t"},
        ),
        ("/hooks/open", b"[", 900_000, b"]", JSON),
        ("/v1/tasks", b'{"function": "f", "args": [', 30_000, b"]}", JSON),
    ],
    ids=["task", "batch", "event", "binary", "hook", "small"],
)
@pytest.mark.parametrize("number", [DEAR, HALF], ids=["dear", "half"])
def test_dear_numbers_hold_up_nobody(
    system: System, number: bytes, path: str, head: bytes, size: int, tail: bytes, headers: dict[str, str]
) -> None:
    text = "triggers: [{name: open, kind: webhook, verify: none}]"
    assert system.http("POST", "/v1/rules", {"files": [{"label": "open", "text": text}]}).status == 200
    body = head + many(number, size) + tail

    def send() -> None:
        for _ in range(3):
            status = system.http("POST", path, body, headers).status
            assert status in ((422,) if number is DEAR else (202, 404, 413)), status

    check_no_stall(system.local["url"], send)
