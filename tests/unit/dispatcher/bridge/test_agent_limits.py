"""Limits on one agent: rates, sizes, and what is on its way to it."""

from __future__ import annotations

from oncue import ids
from oncue.dispatcher.bridge.agent_limits import IN_FLIGHT_TASKS, cut_ends, decode_results
from oncue.dispatcher.bridge.send_backlog import BACKLOG_BYTES, SendBacklog
from oncue.dispatcher.bridge.unmatched_results import MAX_BYTES, UnmatchedResults
from oncue.protocol import bridge
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import (
    ERROR,
    OK,
    OUTPUT_BYTES,
    VALUE_BYTES,
    VERSION,
    Call,
    Ended,
    Failure,
    TaskFrame,
    TaskRecord,
)
from tests.unit.dispatcher.bridge.test_channel import CALL, Harness

ID = b"i" * 16
OTHER = Call(VERSION, "0" * 64, "ep", "bob", stream="another's")


def results(seq: int = 1) -> bridge.Results:
    return bridge.Results(seq, 1, encode(OTHER), 1, 1)


def test_results_within_the_limits_keep_their_bytes() -> None:
    body = encode([Ended(ID, 1, OK, 1, 2, b"m" * VALUE_BYTES, b"o" * OUTPUT_BYTES)])
    ends, kept = decode_results(body)
    assert (kept, len(ends)) == (body, 1)


def test_results_beyond_the_limits_are_cut_or_become_errors() -> None:
    long = Failure("T" * 9_000, "m" * 900_000, "t" * 900_000, "r" * 900_000)
    ends = [
        Ended(ID, 1, OK, 1, 2, b"m" * (VALUE_BYTES + 1)),
        Ended(ID, 1, ERROR, 1, 2, encode(long)),
        Ended(ID, 1, ERROR, 1, 2, b"\xc1" * (VALUE_BYTES + 1)),
        Ended(ID, 1, OK, 1, 2, b"m", b"o" * (OUTPUT_BYTES + 1)),
    ]
    too_large, shortened, garbage, printed = cut_ends(ends)
    assert (too_large.status, decode(Failure, too_large.value).type) == (ERROR, "oncue.ResultTooLarge")
    assert len(shortened.value) < VALUE_BYTES
    assert decode(Failure, garbage.value).type == "oncue.Undecodable"
    assert (printed.value, len(printed.output)) == (b"m", OUTPUT_BYTES)
    assert cut_ends([printed]) == []


class Sent:
    done = False


def test_an_agent_is_behind_until_it_has_read_half() -> None:
    backlog, frames = SendBacklog(), [Sent() for _ in range(5)]
    part = BACKLOG_BYTES // 4
    assert [backlog.add("ep", part, f) for f in frames] == [False, False, False, False, True]
    assert backlog.caught_up() == []
    for f in frames[:3]:
        f.done = True
    assert backlog.caught_up() == ["ep"]
    for f in frames:
        f.done = True
    assert backlog.caught_up() == ["ep"]
    assert backlog.caught_up() == []


def test_what_an_agent_says_about_a_call_does_not_count() -> None:
    unmatched = UnmatchedResults()
    ends = [Ended(b"a" * 16, 1, OK), Ended(b"b" * 16, 1, OK), Ended(b"c" * 16, 1, OK)]
    assert unmatched.add(7, results(), ends, 100)
    found = unmatched.pop(7, {b"b" * 16: CALL, b"c" * 16: OTHER})
    assert found is not None
    message, kept, others = found
    assert decode(Call, message.call) == CALL
    assert ([e.id for e in kept], others) == ([b"b" * 16], 2)
    assert unmatched.pop(7, {}) is None


def test_unmatched_results_are_bounded() -> None:
    unmatched = UnmatchedResults()
    assert unmatched.add(1, results(), [], MAX_BYTES)
    assert not unmatched.add(2, results(), [], 1)
    unmatched.clear()
    assert unmatched.add(3, results(), [], 1)


def test_credit_without_end_does_not_bring_all_tasks() -> None:
    h = Harness(answer_loads=False)
    h.hello()
    h.channel._limits.workers = 1 << 30  # it says that it has so many
    h.channel.on_page(h.loads[-1].token, [])
    many = [TaskRecord(i, b"m") for i in ids.derived_ids(1, b"x", 60_000)]
    h.receive(bridge.Credit(1 << 53))
    for n in range(5):
        part = [TaskRecord(n.to_bytes(1, "big") + t.id[1:], b"m") for t in many]
        h.channel.add_tasks(TaskFrame(VERSION, CALL, 5, part), 1)
    h.run_effects()
    assert len(h.channel.in_flight) == IN_FLIGHT_TASKS


def test_an_agent_that_says_hello_all_the_time_is_not_served_each_time() -> None:
    h = Harness()
    hello = bridge.Hello(bridge.PROTOCOL, "0", "3.11", "host", 1, b"b" * 8, b"j" * 8, 2, 0)
    for n in range(500):
        h.channel.on_frame([encode(bridge.AgentEnvelope(9 + n, 0, 0, hello))], 1_000_000)
    welcomes = [e for e in _sent(h) if isinstance(e.message, bridge.Welcome)]
    assert len(welcomes) <= 30


def _sent(h: Harness) -> list[bridge.BridgeEnvelope]:
    h.run_effects()
    return h.messages
