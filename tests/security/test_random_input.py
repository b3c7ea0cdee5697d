"""Random and damaged input of every kind that outsiders send: read, or refused with an error of oncue's own, soon."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from oncue.endpoint.agent.journal import ENDED, IDENTITY, RECEIVED, pack
from oncue.protocol import bridge
from oncue.protocol.codec import encode
from oncue.protocol.exceptions import to_data
from oncue.protocol.records import Call, Ended, TaskFrame, TaskRecord
from tests.security.targets import TARGETS, attempt

EXAMPLES = 300  # for each kind; tests/security/fuzz.py goes on for longer
SLOW_S = 5.0  # a stall: honest inputs of this size take milliseconds

CALL = Call(1, "f" * 64, "ep", "ada", "f")
RULES = b"""
triggers:
  - {name: t, kind: file, path: /data, glob: "**/*.raw", ready: {stable: 2s}}
  - {name: w, kind: webhook, verify: {github: "${secret:forge}"}}
rules:
  - name: r
    on: t
    match: {data.n: {gt: 1}, type: [a, b]}
    when: data.n > 1 && data.s.startsWith("x")
    batch: {count: 5, every: 30s}
    run: {function: work.py:f, endpoint: local, args: {a: "${data.n}", b: ["x${id}", 1]}, retry: {max: 2}}
tests:
  - {event: {type: a}, fires: [r]}
"""
SEEDS: dict[str, list[bytes]] = {
    "rule_file": [RULES, b"- {}\n" * 2_000, b"[" * 5_000, b"a: &a [*a]", b"a: &a {<<: *a}", b'? [a]\n: "\\x00"'],
    "cloudevent_structured": [
        b'{"specversion":"1.0","id":"1","source":"/s","type":"t","time":"2026-01-01T00:00:00Z","data":{"n":[1,2]}}',
        b'{"specversion":"1.0","id":"1","source":"/s","type":"t","data_base64":"AAAA","x":1}',
        b'{"specversion":"1.0","id":"1","source":"/s","type":"t","data":' + b"[" * 3_000 + b"]" * 3_000 + b"}",
    ],
    "cloudevent_http": [
        b'content-type: application/cloudevents-batch+json\n\n[{"specversion":"1.0","id":"1","source":"/","type":"t"}]',
        b"ce-id: 1\nce-type: t\nce-source: /s\nce-specversion: 1.0\nce-x: %C3%A9\ncontent-type: text/plain\n\nhello",
        b'content-type: application/cloudevents+json; charset=utf-16\n\n{"id":1}',
    ],
    "cloudevent_kafka": [
        b"ce_id: 1\nce_type: t\nce_source: /s\nce_specversion: 1.0\ncontent-type: application/json\n\n[1,2]",
        b"content-type: application/cloudevents+json\n\n{}",
    ],
    "frame_from_agent": [
        bridge.encode(bridge.AgentEnvelope(1, 0, 1, bridge.Credit(5))),
        bridge.encode(bridge.BridgeEnvelope(1, 0, 1, bridge.Ack(5))),
        b"\x94\x01\x00\x01" + b"\x91" * 3_000,
    ],
    "channel": [
        bridge.encode(bridge.Results(0, 1, encode(CALL), 1, 5)) + b"\1\1" + encode([Ended(b"i" * 16, 1, 0)]),
        bridge.encode(bridge.Results(-1, -5, b"\xff", -1, 1 << 62)) + b"\1\1" + encode([Ended(b"i", 0, 99)]),
        bridge.encode(bridge.Inventory(False))
        + b"\1\1"
        + b"x" * 40
        + b"\0\0"
        + bridge.encode(bridge.FetchPart("", -1)),
        bridge.encode(bridge.UploadPart("a" * 64, -1, -1)) + b"\1\1x\0\0" + bridge.encode(bridge.Bye()) + b"\1\1",
    ],
    "journal": [
        pack(IDENTITY, b"x" * 8)
        + pack(RECEIVED, encode((encode(CALL), 1, 1, [TaskRecord(b"i" * 16, b"")])))
        + pack(ENDED, encode((0, encode(CALL), 1, [Ended(b"i" * 16, 1, 0)]))),
        pack(IDENTITY, b""),
        pack(99, b"x") + pack(ENDED, b"\x94\xff\x00"),
    ],
    "stored_records": [encode(TaskFrame(1, CALL, 1, [TaskRecord(b"i" * 16, b"")])), b"\x91" * 5_000],
    "payloads": [b"\x00" + encode([1]), b"\x01" + b"\x80\x04.", b"\x91" * 5_000],
    "exceptions_of_others": [
        to_data(ExceptionGroup("g", [OSError(2, "x", "/y"), KeyError((1, {2: [3j]}))])),
        to_data(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")),
        b"\x91" * 5_000,
    ],
    "function_body": [encode(["3.11", "f", b"", "", {}]), b"\x91" * 5_000],
    "webhook": [
        b"webhook-id: 1\nwebhook-timestamp: 1700000000\nwebhook-signature: v1,AAAA\ncontent-type: application/json\n\n{}",
        b"x-hub-signature-256: sha256=00\n\n{",
        b"authorization: Bearer \xff\n\n" + b"[" * 5_000,
    ],
    "cel": [b"data.n > 1", b"data.l.all(x, x > 0)", b"has(data.q)", b"'a'.matches('(a+)+$')", b"(" * 900],
    "texts": [b"**/*.raw", b"[!a-z]{1,2}*", b"1h30m", b"2 GiB", b"${a}$${b}${", b"9" * 500 + b"d"],
    "settings": [b'port = 1\nhost = "x"\n', b"port = 99999999999999999999", b"[a]\nb = 1979-05-27", b"\xff"],
}


def damaged(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """A seed with a piece cut out and another put in, some times; or anything."""
    piece = st.binary(max_size=8) | st.sampled_from(
        [b"\0", b"\xff" * 4, b"\r\n", b"${", b"\xc9\x0c", b"\xdd\xff\xff\xff\xff"]
    )

    @st.composite
    def cut(draw: st.DrawFn) -> bytes:
        data = draw(st.sampled_from(seeds))
        for _ in range(draw(st.integers(1, 4))):
            at = draw(st.integers(0, len(data)))
            data = data[:at] + draw(piece) + data[at + draw(st.integers(0, 12)) :]
        return data

    return cut() | st.binary(max_size=200)


def test_every_target_has_seeds() -> None:
    assert set(SEEDS) == set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_the_error_is_ours(name: str) -> None:
    target, seeds = TARGETS[name], SEEDS[name]

    def check(data: bytes) -> None:
        began = time.process_time()
        attempt(target, data)
        assert time.process_time() - began < SLOW_S, f"{len(data):,} bytes took {time.process_time() - began:.1f} s"

    run = given(damaged(seeds))(check)
    for seed in seeds:
        run = example(seed)(run)
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=checks)(run)()
