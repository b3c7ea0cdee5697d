"""What each limiter does with firings over time: a table, run by the production fold."""

from __future__ import annotations

from typing import Any

import pytest

from oncue.errors import RuleFileError
from oncue.protocol.records import Event
from oncue.rules.parsing.rule_file import Rule, parse
from oncue.rules.testing.simulation import SimulatedFiring, simulate

K = 'key: "${data.k}"'


def rule(limits: str, n: str = "${data.n}") -> Rule:
    text = f"rules: [{{name: r, on: {{type: t}}, {limits}, run: {{function: f, args: {{n: '{n}'}}}}}}]"
    return parse(text, "r.yaml").rules[0]


def run(limits: str, events: list[tuple[int, str]], takes_ms: int, n: str = "${data.n}") -> list[SimulatedFiring]:
    given = [
        (at, Event(id=name, source="/s", type="t", data={"k": name[0], "n": int(name[1:])})) for at, name in events
    ]
    return simulate(rule(limits, n), given, takes_ms)


@pytest.mark.parametrize(
    ("limits", "takes_ms", "events", "expected"),
    [
        # queue: the others wait, in their order
        ("limit: {running: 1}", 10, [(0, "a1"), (1, "b2"), (2, "a3")], [(0, 1), (10, 2), (20, 3)]),
        ("limit: {running: 2}", 10, [(0, "a1"), (1, "b2"), (2, "a3")], [(0, 1), (1, 2), (10, 3)]),
        ("limit: {running: 1}", 10, [(0, "a1"), (20, "a2")], [(0, 1), (20, 2)]),
        ("limit: {running: 1}", 0, [(0, "a1"), (0, "a2")], [(0, 1), (0, 2)]),
        (f"limit: {{running: 1, {K}}}", 10, [(0, "a1"), (1, "b2"), (2, "a3")], [(0, 1), (1, 2), (10, 3)]),
        # a repeated event that waits waits once
        ("limit: {running: 1}", 10, [(0, "a1"), (1, "a2"), (2, "a2")], [(0, 1), (10, 2)]),
        # skip
        ("limit: {running: 1, overlap: skip}", 10, [(0, "a1"), (1, "a2"), (10, "a3")], [(0, 1), (10, 3)]),
        # newest: one waits
        (
            "limit: {running: 1, overlap: newest}",
            10,
            [(0, "a1"), (1, "a2"), (2, "a3"), (30, "a4")],
            [(0, 1), (10, 3), (30, 4)],
        ),
        # a full queue
        ("limit: {running: 1, queue: 1, full: drop}", 10, [(0, "a1"), (1, "a2"), (2, "a3")], [(0, 1), (10, 2)]),
        # rate: so many in any time of that length, the others wait
        ("rate: {count: 1, per: 10s}", 0, [(0, "a1"), (1, "b2"), (2, "a3")], [(0, 1), (10_000, 2), (20_000, 3)]),
        (f"rate: {{count: 1, per: 10s, {K}}}", 0, [(0, "a1"), (1, "b2"), (2, "a3")], [(0, 1), (1, 2), (10_000, 3)]),
        (
            "rate: {count: 2, per: 10s}",
            0,
            [(0, "a1"), (9_000, "a2"), (10_000, "a3"), (11_000, "a4"), (30_000, "a5")],
            [(0, 1), (9_000, 2), (10_000, 3), (19_000, 4), (30_000, 5)],
        ),
        ("rate: {count: 1, per: 1s, queue: 1, full: drop}", 0, [(0, "a1"), (1, "a2"), (2, "a3")], [(0, 1), (1_000, 2)]),
        # both hold for what starts
        (
            f"limit: {{running: 1, {K}}}, rate: {{count: 1, per: 1s}}",
            5_000,
            [(0, "a1"), (1, "a2"), (2, "b3"), (3, "b4")],
            [(0, 1), (1_000, 3), (5_000, 2), (6_000, 4)],
        ),
        # one that is dropped frees its place
        (
            f"limit: {{running: 1, {K}}}, rate: {{count: 1, per: 10s, queue: 1, full: drop}}",
            0,
            [(0, "a1"), (1, "b2"), (2, "c3"), (11_000, "c4")],
            [(0, 1), (10_000, 2), (20_000, 4)],
        ),
        # an event that comes again while it waits for the rate takes no second place of the limit
        (
            "limit: {running: 2}, rate: {count: 1, per: 1s}",
            0,
            [(0, "a1"), (1, "a2"), (2, "a2"), (5_000, "a3"), (5_001, "a4"), (5_002, "a4"), (10_000, "a5")],
            [(0, 1), (1_000, 2), (5_000, 3), (6_000, 4), (10_000, 5)],
        ),
        # tests run as if the rule were not paused
        ("mode: paused", 0, [(0, "a1"), (1, "a2")], [(0, 1), (1, 2)]),
        # after operators
        (f"dedupe: {{{K}, ttl: 1s}}, limit: {{running: 1}}", 10, [(0, "a1"), (1, "a2"), (2, "b3")], [(0, 1), (10, 3)]),
    ],
)
def test_limits_of_what_runs(
    limits: str, takes_ms: int, events: list[tuple[int, str]], expected: list[tuple[int, int]]
) -> None:
    found = run(limits, events, takes_ms)

    assert [f.trouble for f in found if f.trouble] == []
    assert [(f.at_ms, f.args["n"]) for f in found if not f.dropped] == expected


def test_a_batch_counts_as_one_and_has_the_key_of_its_last_event() -> None:
    limits = f"batch: {{{K}, count: 2}}, limit: {{running: 1}}"
    events = [(0, "a1"), (1, "b2"), (2, "b3"), (3, "a4")]

    found = run(limits, events, 10, "${each.data.n}")

    assert [(f.at_ms, f.args["n"]) for f in found] == [(2, [2, 3]), (12, [1, 4])]


def test_a_full_queue_is_a_dead_letter_that_names_what_runs() -> None:
    found = run("limit: {running: 1, queue: 1}", [(0, "a1"), (1, "a2"), (2, "a3")], 10)

    (trouble,) = [f.trouble for f in found if f.trouble]
    assert trouble.startswith("1 firings wait for `limit` already: 1 wait: 1 of at most 1 run: task 00000000")
    assert [f.args["n"] for f in found if not f.trouble] == [1, 2]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ("limit: {key: a}", "`limit` lacks the key 'running'"),
        ("limit: {running: 0}", "limit.running is 0; it takes 1 to 1,000"),
        ("limit: {running: 1, overlap: cancel}", "limit.overlap is one of queue, skip, newest"),
        ("limit: {running: 1, full: keep}", "limit.full is one of dead, drop"),
        ("limit: {running: 1, overlap: skip, queue: 5}", "limit.queue is of `overlap: queue`; with `overlap: skip`"),
        ("rate: {count: 1}", "`rate` lacks the key 'per'"),
        ("rate: {count: 1001, per: 1s}", "rate.count is 1001; it takes 1 to 1,000"),
        ("mode: off", "mode is one of on, shadow, paused"),
        ("mode: paused, resume: newest", "resume is one of catch-up, latest"),
        ("mode: on, resume: latest", "`resume` is of `mode: paused`"),
        ("limit: {runing: 1}", "`limit` has no key 'runing'"),
        ("limit: 8", "`limit` is a mapping, not a whole number"),
        (
            'limit: {running: 1, key: "${each.data.k}"}',
            "${each.data.k} is for the arguments of rules that run for many",
        ),
    ],
)
def test_mistakes_are_named(limits: str, message: str) -> None:
    with pytest.raises(RuleFileError) as e:
        rule(limits)
    assert message in str(e.value)


def test_overlapping_windows_of_one_event_wait_each() -> None:
    windows = "window: {sliding: 30s, every: 10s}, limit: {running: 1}"
    found = run(windows, [(0, "a1")], 100_000, "${window.end}")
    assert [(f.at_ms, f.args["n"][14:19]) for f in found] == [(10_000, "00:10"), (110_000, "00:20"), (210_000, "00:30")]


def test_an_event_that_fires_nothing_needs_no_key_of_a_limit() -> None:
    absent = "absent: {after: {match: {data.n: 1}}, expect: {match: {data.n: 2}}, within: 10s}"
    given = rule(f'{absent}, limit: {{running: 1, key: "${{data.k}}"}}')
    events = [(at, Event(id=str(n), source="/s", type="t", data=data)) for at, n, data in (
        (0, 1, {"n": 1, "k": "a"}), (1, 2, {"n": 2}), (2, 3, {"n": 1, "k": "a"}), (3, 4, {"n": 1}),
    )]  # fmt: skip
    found = simulate(given, events)
    assert [(f.at_ms, f.args, f.trouble[:20]) for f in found] == [
        (3, None, "limit.key: the event"),
        (10_002, {"n": 1}, ""),
    ]


def describe(limits: str) -> Any:
    found = rule(limits).operators
    return found.describe() if found else None


def test_limits_are_described() -> None:
    assert describe("limit: {running: 8}") == "at most 8 running"
    assert (
        describe(f"limit: {{running: 8, {K}, overlap: newest}}") == "at most 8 running by ${data.k}, the newest waits"
    )
    assert describe("rate: {count: 100, per: 1m}") == "at most 100 in 1m"
    assert describe("mode: paused") == "paused, and all will run later"
    assert describe("mode: on") is None
    assert describe("throttle: {per: 1s}, limit: {running: 1, overlap: skip}") == (
        "throttle to 1 in 1s, at most 1 running, others are skipped"
    )
