"""What each operator does with events over time: a table, run by the production fold."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncue.errors import RuleFileError
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION, Event
from oncue.rules.explain import decide, explain
from oncue.rules.operators.batch import WINDOW_BYTES
from oncue.rules.operators.catalog import operator_id
from oncue.rules.operators.records import BufferedEvent, Tick
from oncue.rules.operators.sample import SampleOperator
from oncue.rules.parsing.rule_file import Rule, parse
from oncue.rules.stateful.fold import StateKey, by_clock, fold
from oncue.rules.testing.simulation import InMemoryStates, simulate

MANY = "${each.data.n}"


def rule(operators: str, n: str) -> Rule:
    text = f"rules: [{{name: r, on: {{type: t}}, {operators}, run: {{function: f, args: {{n: '{n}'}}}}}}]"
    return parse(text, "r.yaml").rules[0]


def fired(operators: str, events: list[tuple[int, str]], n: str = "${data.n}") -> list[tuple[int, Any]]:
    """Return (ms, value) of each firing; events are (ms, key and number, for example a1)."""
    given = [
        (at, Event(id=name, source="/s", type="t", data={"k": name[0], "n": int(name[1:].rstrip("+"))}))
        for at, name in events
    ]
    found = simulate(rule(operators, n), given)
    assert [f.trouble for f in found if f.trouble] == []
    return [(f.at_ms, f.args["n"]) for f in found]


K = 'key: "${data.k}"'


@pytest.mark.parametrize(
    ("operators", "events", "expected"),
    [
        # throttle: so many in a period that begins with an event
        (f"throttle: {{{K}, per: 10s}}", [(0, "a1"), (9_999, "a2"), (10_000, "a3")], [(0, 1), (10_000, 3)]),
        (f"throttle: {{{K}, per: 10s}}", [(0, "a1"), (1, "b2"), (2, "a3")], [(0, 1), (1, 2)]),
        ("throttle: {per: 10s}", [(0, "a1"), (1, "b2")], [(0, 1)]),
        (
            "throttle: {count: 2, per: 10s}",
            [(0, "a1"), (1, "a2"), (2, "a3"), (10_000, "a4"), (10_001, "a5"), (10_002, "a6")],
            [(0, 1), (1, 2), (10_000, 4), (10_001, 5)],
        ),
        # sample: the first, every so many, begins anew after a pause
        (f"sample: {{{K}, first: 2}}", [(0, "a1"), (1, "a2"), (2, "a3"), (3, "b4")], [(0, 1), (1, 2), (3, 4)]),
        (f"sample: {{{K}, every: 2}}", [(n, f"a{n}") for n in range(5)], [(0, 0), (2, 2), (4, 4)]),
        (f"sample: {{{K}, every: 2, first: 2}}", [(n, f"a{n}") for n in range(9)], [(0, 0), (2, 2)]),
        (
            f"sample: {{{K}, first: 1, ttl: 5s}}",
            [(0, "a1"), (4_000, "a2"), (8_999, "a3"), (14_000, "a4")],
            [(0, 1), (14_000, 4)],
        ),
        # of a series: the last, and some evenly spaced
        (f"sample: {{{K}, last: true, of: 3}}", [(n, f"a{n}") for n in range(5)], [(2, 2)]),
        (f"sample: {{{K}, select: 3, of: 9}}", [(n, f"a{n}") for n in range(12)], [(0, 0), (3, 3), (6, 6)]),
        (f"sample: {{{K}, select: 3, of: 10}}", [(n, f"a{n}") for n in range(10)], [(0, 0), (4, 4), (7, 7)]),
        (f"sample: {{{K}, select: 3, of: 2}}", [(n, f"a{n}") for n in range(2)], [(0, 0), (1, 1)]),
        ("sample: {last: true, of: '${data.n}'}", [(0, "a2"), (1, "a2"), (2, "a2")], [(1, 2)]),
        # debounce: the newest, once it is quiet, or after max
        (f"debounce: {{{K}, quiet: 5s}}", [(0, "a1"), (4_999, "a2"), (20_000, "a3")], [(9_999, 2), (25_000, 3)]),
        (f"debounce: {{{K}, quiet: 5s}}", [(0, "a1"), (1, "b2")], [(5_000, 1), (5_001, 2)]),
        (
            f"debounce: {{{K}, quiet: 5s, max: 8s}}",
            [(0, "a1"), (4_000, "a2"), (7_000, "a3"), (9_000, "a4")],
            [(8_000, 3), (14_000, 4)],
        ),
        (f"debounce: {{{K}, quiet: 5s}}", [(0, "a1"), (0, "a2")], [(5_000, 2)]),
        # after: each event once its time has come, once
        ("after: 2d", [(0, "a1"), (5, "b2")], [(172_800_000, 1), (172_800_005, 2)]),
        ("after: {delay: 10s}", [(0, "a1"), (9_999, "a1"), (10_000, "a1"), (19_999, "a1")], [(10_000, 1)]),
        ("after: 10s", [(0, "a1"), (20_000, "a1")], [(10_000, 1), (30_000, 1)]),
        (f"after: {{{K}, delay: 10s}}", [(0, "a1"), (5_000, "a2"), (5_001, "b3")], [(10_000, 1), (15_001, 3)]),
        (f"dedupe: {{{K}, ttl: 1h}}, after: 10s", [(0, "a1"), (1, "a2"), (2, "b3")], [(10_000, 1), (10_002, 3)]),
        # order_by: in the order of numbers; those that are behind a gap wait
        (
            'order_by: "${data.n}"',
            [(0, "a3"), (1, "a5"), (2, "a6"), (3, "a4"), (4, "a4"), (5, "a7"), (6, "a2")],
            [(0, 3), (3, 4), (3, 5), (3, 6), (5, 7)],
        ),
        (
            f'order_by: {{{K}, by: "${{data.n}}", from: 1}}',
            [(0, "a2"), (1, "b1"), (2, "a1"), (3, "b3")],
            [(1, 1), (2, 1), (2, 2)],
        ),
        (
            'order_by: {by: "${data.n}", on_block: skip, within: 10s}',
            [(0, "a1"), (1_000, "a3"), (2_000, "a6"), (3_000, "a5"), (40_000, "a7")],
            [(0, 1), (11_000, 3), (21_000, 5), (21_000, 6), (40_000, 7)],
        ),
        # one after the other
        (
            f"dedupe: {{{K}, ttl: 1s}}, debounce: {{quiet: 5s}}",
            [(0, "a1"), (500, "a2"), (2_000, "b3")],
            [(7_000, 3)],
        ),
        ("throttle: {per: 1s}, sample: {every: 2}", [(n * 500, f"a{n}") for n in range(7)], [(0, 0), (2_000, 4)]),
    ],
)
def test_operators_for_single_events(
    operators: str, events: list[tuple[int, str]], expected: list[tuple[int, int]]
) -> None:
    assert fired(operators, events) == expected


@pytest.mark.parametrize(
    ("operators", "events", "expected"),
    [
        (f"count: {{{K}, n: 2, within: 5s}}", [(0, "a1"), (4_999, "a2")], [(4_999, [1, 2])]),
        (f"count: {{{K}, n: 2, within: 5s}}", [(0, "a1"), (5_000, "a2"), (9_000, "a3")], [(9_000, [2, 3])]),
        (f"count: {{{K}, n: 2, within: 5s}}", [(0, "a1"), (1, "b2"), (2, "a3")], [(2, [1, 3])]),
        # after it has fired it counts from nothing
        ("count: {n: 2, within: 5s}", [(n, f"a{n}") for n in range(5)], [(1, [0, 1]), (3, [2, 3])]),
        # an event that is told twice counts once
        ("count: {n: 2, within: 5s}", [(0, "a1"), (1, "a1"), (2, "a2")], [(2, [1, 2])]),
        # many that are too old, before those that count
        (
            "count: {n: 3, within: 5s}",
            [(n * 4_000, f"a{n}") for n in range(40)] + [(156_500, "a50")],
            [(156_500, [38, 39, 50])],
        ),
        ("count: {n: 1, within: 1s}", [(0, "a1")], [(0, [1])]),
    ],
)
def test_count_fires_for_events_within_a_time(
    operators: str, events: list[tuple[int, str]], expected: list[tuple[int, list[int]]]
) -> None:
    assert fired(operators, events, MANY) == expected


def ended(operators: str, events: list[tuple[int, str]], n: str = MANY) -> list[tuple[int, Any]]:
    """Return (ms, value, or why there is none) of each firing; `+` ends the name of an event that tells a list."""
    given = [(at, Event(id=name, source="/s", type="t", data=_joined(name))) for at, name in events]
    return [(f.at_ms, f.trouble or f.dropped or f.args["n"]) for f in simulate(rule(operators, n), given)]


def _joined(name: str) -> dict[str, Any]:
    """a1 is part 1 of a, a1/2 is told again with another id, a1+ tells the list 1, 2, 3, and a+ only that."""
    number = name[1:].rstrip("+").partition("/")[0]
    data: dict[str, Any] = {"k": name[0]} | ({"n": int(number)} if number else {})
    return data | ({"all": [1, 2, 3]} if name.endswith("+") else {})


COUNT = f"join: {{{K}, count: 3, deadline: 10s"
LIST = f'join: {{{K}, list: "${{data.all}}", by: "${{data.n}}", deadline: 10s'
PART = "join: 1 of 3: 2 missing within 10s"
LATE = "within 10s (key 'a')"
ONE = f"{PART} (key 'a')"
ONE_OF_B = "join: 1 of 3: missing dark, flat within 10s (key 'b')"
SEQUENCE_OF_ONE = "sequence: one came, and two, three not within 10s"
AGAIN = "sequence: one, two came, and three not before it began anew (key 'a')"
OVER = f"sequence: one, two came, and three not {LATE}"
NEXT = f"join: 1 of 3: missing 2, 3 {LATE}"


@pytest.mark.parametrize(
    ("operators", "events", "expected"),
    [
        # as many as are wanted, at once with the last
        (COUNT + "}", [(0, "a1"), (1, "b1"), (2, "a2"), (9_999, "a3")], [(9_999, [1, 2, 3]), (10_001, f"{PART} (key 'b')")]),
        (COUNT + "}", [(0, "a1"), (1, "a1"), (2, "a2"), (3, "a3"), (4, "a3")], [(3, [1, 2, 3])]),
        # the deadline counts from the first
        (COUNT + "}", [(0, "a1"), (5_000, "a2"), (10_000, "a3")], [(10_000, f"join: 2 of 3: 1 missing {LATE}"), (20_000, ONE)]),
        (COUNT + ", then: fire}", [(0, "a1"), (5_000, "a2")], [(10_000, [1, 2])]),
        (COUNT + ", then: drop}", [(0, "a1")], [(10_000, f"join: 1 of 3: 2 missing {LATE}")]),
        # then the key begins anew
        (COUNT + "}", [(n, f"a{n}") for n in range(6)], [(2, [0, 1, 2]), (5, [3, 4, 5])]),
        # names: one each, the first counts
        (f'join: {{{K}, count: 2, by: "${{data.n}}", deadline: 10s}}', [(0, "a1"), (1, "a1/2"), (2, "a2")], [(2, [1, 2])]),
        (LIST + "}", [(0, "a1+"), (1, "a3"), (2, "a2")], [(2, [1, 3, 2])]),
        # the list may come last, alone, or with names that it does not have
        (LIST + "}", [(0, "a3"), (1, "a2"), (2, "a1+")], [(2, [3, 2, 1])]),
        (LIST + "}", [(0, "a+"), (1, "a3"), (2, "a2"), (3, "a1")], [(3, [3, 2, 1])]),
        (LIST + "}", [(0, "a1"), (1, "a7"), (2, "a2"), (3, "a3"), (4, "a+")], [(4, [1, 2, 3])]),
        (LIST + "}", [(0, "a1+"), (1, "a7"), (2, "a2"), (3, "a3")], [(3, [1, 2, 3])]),
        (LIST + "}", [(0, "a1+"), (1, "a1/2"), (2, "a2")], [(10_000, f"join: 2 of 3: missing 3 {LATE}")]),
        (LIST + "}", [(0, "a1")], [(10_000, f"join: 1 have come, and no event has told the list {LATE}")]),
        (LIST + ", then: fire}", [(0, "a+")], [(10_000, f"join: 0 of 3: missing 1, 2, 3 {LATE}")]),
        (LIST + ", then: fire}", [(0, "a7"), (1, "a+")], [(10_000, f"join: 0 of 3: missing 1, 2, 3 {LATE}")]),
        # late: a name that was missing at the deadline, until it has passed once more
        (LIST + ", then: fire}", [(0, "a1+"), (5, "a2"), (10_001, "a3")], [(10_000, [1, 2])]),
        (LIST + ", then: fire}", [(0, "a1+"), (5, "a2"), (20_001, "a3+")], [(10_000, [1, 2]), (30_001, [3])]),
        # what has come already is told again, after the join or in the next one
        (LIST + "}", [(0, "a1+"), (1, "a2"), (2, "a3"), (3, "a2"), (4, "a1/2+"), (5, "a3")], [(2, [1, 2, 3]), (10_004, NEXT)]),
    ],
)  # fmt: skip
def test_join_waits_for_all_of_them(
    operators: str, events: list[tuple[int, str]], expected: list[tuple[int, Any]]
) -> None:
    assert ended(operators, events) == expected


EVENT_TIME = 'time: "${data.n}", late: 10s'
HOUR = 3_600_000


@pytest.mark.parametrize(
    ("operators", "events", "expected"),
    [
        # tumbling: one after the other, from full minutes on; empty ones fire nothing
        (
            f"window: {{{K}, tumbling: 10s}}",
            [(1, "a1"), (9_999, "a2"), (10_000, "a3"), (35_000, "a4")],
            [(10_000, [1, 2]), (20_000, [3]), (40_000, [4])],
        ),
        (f"window: {{{K}, tumbling: 10s}}", [(1, "a1"), (2, "b2")], [(10_000, [1]), (10_000, [2])]),
        # an event that is told twice counts once in a window
        ("window: {tumbling: 10s}", [(1, "a1"), (2, "a1"), (10_000, "a1")], [(10_000, [1]), (20_000, [1])]),
        # sliding: each event is in as many windows as overlap
        (
            "window: {sliding: 10s, every: 5s}",
            [(0, "a1"), (6_000, "a2"), (30_000, "a3")],
            [(5_000, [1]), (10_000, [1, 2]), (15_000, [2]), (35_000, [3]), (40_000, [3])],
        ),
        ("window: {sliding: 10s, every: 5s}", [(0, "a1"), (4_999, "a1"), (6_000, "a1")], [(5_000, [1]), (10_000, [1])]),
        # sessions: until a pause, or the longest time
        (
            f"window: {{{K}, session: 5s}}",
            [(0, "a1"), (4_999, "a2"), (9_999, "a3"), (1, "b4")],
            [(5_001, [4]), (9_999, [1, 2]), (14_999, [3])],
        ),
        (
            "window: {session: 5s, size: 8s}",
            [(0, "a1"), (4_000, "a2"), (7_999, "a3"), (8_000, "a4")],
            [(8_000, [1, 2, 3]), (13_000, [4])],
        ),
        # by the events' time (their numbers are seconds): a window waits for late ones, in any order
        (
            f"window: {{tumbling: 10s, {EVENT_TIME}}}",
            [(HOUR, "a1"), (HOUR + 1, "a12"), (HOUR + 2, "a2"), (HOUR + 3, "a20"), (HOUR + 4, "a3")],
            [(HOUR + 3, [1, 2]), (HOUR + 10_004, [12]), (HOUR + 10_004, [20])],
        ),
        # its time is told by none: then the clock ends it, `late` after the last event
        (f"window: {{tumbling: 10s, {EVENT_TIME}}}", [(HOUR, "a1"), (HOUR + 9_999, "a2")], [(HOUR + 19_999, [1, 2])]),
        # an event of the future counts when it is accepted
        (
            f"window: {{tumbling: 10s, {EVENT_TIME}}}",
            [(11_000, "a1"), (12_000, "a999"), (13_000, "a13")],
            [(23_000, [1]), (30_000, [999, 13])],
        ),
        # a late event joins two sessions
        (
            f"window: {{session: 5s, {EVENT_TIME}}}",
            [(HOUR, "a10"), (HOUR + 1, "a16"), (HOUR + 2, "a13")],
            [(HOUR + 10_002, [10, 16, 13])],
        ),
        (
            "window: {sliding: 20s, every: 10s, " + EVENT_TIME + "}",
            [(HOUR, "a5"), (HOUR + 1, "a25"), (HOUR + 2, "a12"), (HOUR + 3, "a3"), (HOUR + 4, "a41")],
            [(HOUR + 1, [5]), (HOUR + 4, [5, 12, 3]), (HOUR + 4, [25, 12]), (HOUR + 10_004, [25]),
             (HOUR + 10_004, [41]), (HOUR + 10_004, [41])],
        ),
    ],
)  # fmt: skip
def test_windows_in_time(operators: str, events: list[tuple[int, str]], expected: list[tuple[int, list[int]]]) -> None:
    assert fired(operators, events, MANY) == expected


@pytest.mark.parametrize("kind", ["tumbling: 10s", "session: 10s", "sliding: 10s, every: 5s"])
@pytest.mark.parametrize("time", ["", ", time: '${data.n}', late: 1s"])
def test_windows_of_a_clock_that_was_ahead_close_by_the_right_one(kind: str, time: str) -> None:
    operators = rule(f"window: {{{kind}{time}}}", MANY).operators
    assert operators is not None
    year_ms = 365 * 24 * HOUR
    event = Event(id="1", source="/s", type="t", data={"n": 10})
    states = InMemoryStates()
    fold(states, operators.match("r", "", 0, event, year_ms, 0), 0, 0)
    (where,) = states.states

    states.set_state(where, by_clock(states.states[where], HOUR) or states.states[where])

    later = operators.match("r", "", 0, Event(id="2", source="/s", type="t", data={"n": 11}), HOUR + 1_000, 0)
    fold(states, later, 0, 1)
    fired = [c for at in (HOUR + 12_000, HOUR + 17_000) for c in fold(states, Tick(VERSION, at), 0, at)]
    assert {e.id for c in fired for e in c.events} == {"1", "2"}
    assert not states.states[where].buffered()


@pytest.mark.parametrize("kind", ["tumbling: 10s", "session: 10s", "sliding: 10s, every: 5s", "sliding: 4s, every: 1s"])
def test_windows_that_are_full_fire_early_with_each_event_as_often_as_ever(kind: str) -> None:
    text = "x" * 300_000
    events = [(n * 1_000, Event(id=str(n), source="/s", type="t", data={"n": n, "x": text})) for n in range(40)]
    plain, full = (
        simulate(rule(f"window: {{{kind}}}", args), events) for args in (MANY, f"{MANY}', x: '${{first.data.x}}")
    )
    assert len(full) > len(plain)
    assert Counter(n for f in full for n in f.args["n"]) == Counter(n for f in plain for n in f.args["n"])


@pytest.mark.parametrize("length", [1, 249, 250, 251, 3_600])
def test_as_many_of_a_series_as_wanted_are_selected_evenly(length: int) -> None:
    found = fired(f"sample: {{select: 250, of: {length}}}", [(n, f"a{n}") for n in range(length)])
    steps = {b - a for (a, _), (b, _) in pairwise(found)}
    assert len(found) == min(250, length)
    assert max(steps, default=0) - min(steps, default=0) <= 1


@pytest.mark.parametrize("length", [None, 0, "3", True, 2.0])
def test_a_series_without_a_length_is_a_dead_letter(length: Any) -> None:
    given = rule("sample: {last: true, of: '${data.of}'}", "1")
    found = simulate(given, [(0, Event(id="1", source="/s", type="t", data={"of": length}))])
    assert found[0].trouble.startswith("sample.of: data.of is ")


def test_states_of_former_versions_are_still_those_of_their_rules() -> None:
    assert operator_id(SampleOperator("${k}", 2, 3, 5_000), ()) == "f91d485076b621b1"
    assert operator_id(SampleOperator("${k}", 2, 3, 5_000, True), ()) != "f91d485076b621b1"


def test_events_behind_a_gap_become_dead_letters_that_name_it() -> None:
    given = rule('order_by: {by: "${data.n}", on_block: dead, within: 10s}', "${data.n}")
    numbers = [(0, 1), (1_000, 4), (2_000, 5), (20_000, 6), (21_000, 3), (22_000, 3), (23_000, 7)]
    events = [(at, Event(id=str(n), source="/s", type="t", data={"n": n})) for at, n in numbers]
    found = [(f.at_ms, f.trouble or f.args["n"]) for f in simulate(given, events)]
    behind = "order_by: 2 to 3 has not come within 10s"
    late = "order_by: 3 came after larger numbers, which had waited for it, have gone on"
    assert found == [(0, 1), (11_000, behind), (11_000, behind), (20_000, 6), (21_000, late), (23_000, 7)]


def test_events_whose_turn_it_is_together_are_read_once() -> None:
    class CountingStates(InMemoryStates):
        released = 0

        def release(self, where: StateKey) -> list[BufferedEvent]:
            self.released += 1
            return super().release(where)

    operators = rule('order_by: {by: "${data.n}", from: 0}', "${data.n}").operators
    assert operators is not None
    states = CountingStates()
    order = [*range(1, 100), 0]
    given = [Event(id=str(n), source="/s", type="t", data={"n": n}) for n in order]
    *_, closed = (fold(states, operators.match("r", "", 0, e, 0, 0), 0, at) for at, e in enumerate(given))
    assert [c.events[0].id for c in closed] == [str(n) for n in range(100)]
    assert states.released == 1


@pytest.mark.parametrize("more", ["", "".join(f", x{n}: '${{data.field_{n} | default(0)}}'" for n in range(200))])
def test_values_of_more_than_a_megabyte_do_not_wait_for_a_number(more: str) -> None:
    given = rule('order_by: "${data.n}"', f"${{data.n}}', x: '${{data.x}}'{more}, y: '")
    assert given.operators is not None
    states = InMemoryStates()
    text = "x" * (100 if more else 400_000)
    for at in range(300):
        event = Event(id=str(at), source="/s", type="t", data={"n": 2 * at, "x": text})
        fold(states, given.operators.match("r", "", 0, event, 0, 0), 0, at)
        assert sum(len(encode(state)) for state in states.states.values()) < WINDOW_BYTES
        assert sum(len(each.row) for held in states.buffers.values() for each in held.values()) < WINDOW_BYTES


@given(st.permutations(range(12)), st.lists(st.integers(0, 11), max_size=6))
def test_each_number_fires_once_and_in_order(order: list[int], again: list[int]) -> None:
    ordered = rule('order_by: {by: "${data.n}", from: 0}', "${data.n}")
    events = [(at, Event(id=str(n), source="/s", type="t", data={"n": n})) for at, n in enumerate([*order, *again])]
    assert [f.args["n"] for f in simulate(ordered, events)] == list(range(12))


@pytest.mark.parametrize(
    ("at_s", "number", "known", "expected"),
    [
        (12, 13, False, "1 events in open windows; the next closes at 1970-01-01T00:00:10.000Z, or after 5 s"),
        (12, 1, True, "1 events in open windows; the next closes at 1970-01-01T00:00:10.000Z, or after 5 s"),
        (100, 90, True, "0 events in open windows; the next closes at 1970-01-01T00:01:40.000Z, or after 5 s"),
        (100, 90, False, "0 events in open windows; the next closes at 1970-01-01T00:01:40.000Z, or after 5 s"),
    ],
)
def test_a_window_explains_what_becomes_of_an_event(at_s: int, number: int, known: bool, expected: str) -> None:
    operators = rule('window: {tumbling: 10s, time: "${data.n}", late: 5s}', MANY).operators
    assert operators is not None
    matches = [
        operators.match("r", "", 0, Event(id=str(n), source="/s", type="t", data={"n": n}), at * 1_000, 0)
        for at, n in ((2, 1), (at_s, number))
    ]
    states = InMemoryStates()
    fold(states, matches[0], 0, 0)
    (state,) = states.states.values()
    finding = operators.operators[0].operator.preview(state, matches[1], "", known)
    assert finding.passes
    assert finding.found == expected + " without an event"


def test_arguments_may_say_which_window_it_was() -> None:
    text = "${key}: ${window.start} to ${window.end}, ${sum.data.n}"
    day_ms = 86_400_000
    found = fired(f"window: {{{K}, tumbling: 1h}}", [(day_ms + 1, "a1"), (day_ms + 2, "a2")], text)
    assert found == [(day_ms + HOUR, "a: 1970-01-02T00:00:00.000Z to 1970-01-02T01:00:00.000Z, 3")]


@pytest.mark.parametrize(
    ("time", "ms"),
    [
        (1_700_000_000, 1_700_000_000_000),
        (1_700_000_000.25, 1_700_000_000_250),
        (1_700_000_000_250, 1_700_000_000_250),
        (1_700_000_000_250_000, 1_700_000_000_250),
        (1_700_000_000_250_000_000, 1_700_000_000_250),
        ("2023-11-14T22:13:20.25Z", 1_700_000_000_250),
        ("2023-11-14T23:13:20.25+01:00", 1_700_000_000_250),
        ("2023-11-14T22:13:20.25", 1_700_000_000_250),
    ],
)
def test_times_of_events_may_be_texts_and_numbers(time: Any, ms: int) -> None:
    operators = rule('window: {tumbling: 1m, time: "${data.t}", late: 1s}', "1").operators
    assert operators is not None
    assert operators.operators[-1].operator.measure(Event(id="1", source="/s", type="t", data={"t": time})) == ms


@pytest.mark.parametrize("time", [None, "soon", True, -1, float("nan"), float("inf"), "1969-12-31T00:00:00Z", [1]])
def test_an_event_without_a_time_is_a_dead_letter(time: Any) -> None:
    given = rule('window: {tumbling: 1m, time: "${data.t}", late: 1s}', "${count}")
    found = simulate(given, [(0, Event(id="1", source="/s", type="t", data={"t": time}))])
    assert found[0].trouble.startswith("window.time: data.t is ")


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("${missing}", ["3"]),
        ("${expected}", ["1", "2", "3"]),
        ("${count} of ${expected}: missing ${missing}", '2 of ["1","2","3"]: missing ["3"]'),
        ("${first.data.n}/${key}", "1/a"),
    ],
)
def test_arguments_tell_what_is_missing(reference: str, expected: Any) -> None:
    assert ended(LIST + ", then: fire}", [(0, "a1+"), (1, "a2")], reference) == [(10_000, expected)]
    complete = ended(LIST + "}", [(0, "a1+"), (1, "a2"), (2, "a3")], "${missing}")
    assert complete == [(2, [])]
    assert ended(COUNT + ", then: fire}", [(0, "a1")], "${missing} of ${expected}") == [(10_000, "2 of 3")]


def pattern(n: int) -> str:
    return f"{{match: {{data.n: {n}}}}}"


ALL = f"join: {{{K}, all: {{raw: {pattern(1)}, dark: {pattern(2)}, flat: {pattern(3)}}}, deadline: 10s"
NAMED = "${join.raw.data.n}/${join.dark.data.n}/${join.flat.data.n | default(0)}"
DARK = f"join: 2 of 3: missing dark {LATE}"


@pytest.mark.parametrize(
    ("operators", "events", "expected"),
    [
        (ALL + "}", [(0, "a3"), (1, "b1"), (2, "a2"), (3, "a1")], [(3, "1/2/3"), (10_001, f"{ONE_OF_B}")]),
        (ALL + "}", [(0, "a1"), (1, "a1/2"), (2, "a3"), (3, "a9")], [(10_000, DARK)]),
        (ALL + ", then: drop}", [(0, "a1"), (2, "a3"), (10_001, "a2")], [(10_000, DARK)]),
        (ALL + ", then: fire}", [(0, "a1"), (2, "a3"), (10_001, "a2")], [(10_000, "1/null/3")]),
        (
            ALL + ", then: fire}",
            [(0, "a1"), (2, "a3"), (10_001, "a1/2")],
            [(10_000, "1/null/3"), (20_001, "1/null/null")],
        ),
    ],
)
def test_join_waits_for_one_of_each_pattern(
    operators: str, events: list[tuple[int, str]], expected: list[tuple[int, Any]]
) -> None:
    assert ended(operators, events, NAMED.replace(" | default(0)", "")) == expected


def test_each_pattern_needs_its_own_fields_only() -> None:
    text = (
        "rules: [{name: r, join: {all: {scan: {on: {type: scan}}, meta: {on: {type: meta}}}, deadline: 1s},"
        " run: {function: f, args: {p: '${join.scan.data.path | stem}', e: '${join.meta.data.kev * 1000}'}}}]"
    )
    found = parse(text, "r.yaml").rules[0]
    events = [
        Event(id="1", source="/s", type="meta", data={"kev": 8}),
        Event(id="2", source="/s", type="scan", data={"path": "/a/b.h5"}),
    ]
    assert [f.args for f in simulate(found, list(enumerate(events)))] == [{"p": "b", "e": 8000}]
    assert found.on == {"join": {"scan": {"type": "scan"}, "meta": {"type": "meta"}}}
    assert next(c.describe() for c in found.conditions) == "type in ['scan', 'meta']"
    assert decide(found, Event(id="3", source="/s", type="other", data={})) is not None


SEQUENCE = (
    f"sequence: {{{K}, steps: [{{one: {pattern(1)}}}, {{two: {pattern(2)}}}, {{three: {pattern(3)}}}], within: 10s}}"
)
STEPS = "${sequence.one.data.n}${sequence.two.data.n}${sequence.three.data.n}"


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([(0, "a1"), (1, "b1"), (2, "a2"), (9_999, "a3")], [(9_999, "123"), (10_001, f"{SEQUENCE_OF_ONE} (key 'b')")]),
        # those out of order do not count
        ([(0, "a2"), (1, "a3"), (2, "a1"), (3, "a3"), (4, "a2"), (5, "a3/2")], [(5, "123")]),
        # a new beginning replaces the former, with its time
        ([(0, "a1"), (1, "a2"), (5_000, "a1/2"), (14_000, "a2/2"), (14_999, "a3")], [(5_000, AGAIN), (14_999, "123")]),
        ([(0, "a1"), (1, "a2"), (2, "a2"), (3, "a1"), (4, "a3")], [(4, "123")]),
        # the time is over
        ([(0, "a1"), (1, "a2"), (10_000, "a3")], [(10_000, OVER)]),
        ([(0, "a1"), (1, "a2"), (2, "a3"), (3, "a1/2"), (4, "a2/2"), (5, "a3/2")], [(2, "123"), (5, "123")]),
    ],
)
def test_sequence_fires_for_steps_in_order(events: list[tuple[int, str]], expected: list[tuple[int, Any]]) -> None:
    assert ended(SEQUENCE, events, STEPS) == expected


ABSENT = f"absent: {{{K}, after: {pattern(1)}, expect: {pattern(2)}, within: 10s}}"
HEARTBEAT = f"absent: {{{K}, after: {pattern(1)}, expect: {pattern(1)}, within: 10s}}"


@pytest.mark.parametrize(
    ("operators", "events", "expected"),
    [
        (ABSENT, [(0, "a1"), (1, "b1"), (9_999, "a2")], [(10_001, "b1")]),
        (ABSENT, [(0, "a1"), (10_000, "a2")], [(10_000, "a1")]),
        # the first waits; others of its kind do not make it longer
        (ABSENT, [(0, "a1"), (5_000, "a1/2"), (10_000, "a2")], [(10_000, "a1")]),
        (ABSENT, [(0, "a1"), (5_000, "a1/2"), (6_000, "a2")], []),
        # what came before does not count, and what is told again does not begin anew
        (ABSENT, [(0, "a2"), (1, "a1")], [(10_001, "a1")]),
        (ABSENT, [(0, "a1"), (1, "a2"), (2, "a1")], []),
        (ABSENT, [(0, "a1"), (1, "a2"), (2, "a1/2")], [(10_002, "a1/2")]),
        # a heartbeat ends one wait and begins the next
        (HEARTBEAT, [(0, "a1"), (9_000, "a1/2"), (18_000, "a1/3"), (19_000, "a1/3")], [(28_000, "a1/3")]),
    ],
)
def test_absent_fires_if_nothing_comes(
    operators: str, events: list[tuple[int, str]], expected: list[tuple[int, Any]]
) -> None:
    assert ended(operators, events, "${id}") == expected


@pytest.mark.parametrize(("operators", "name"), [(ABSENT, "a2"), (LIST + "}", "a+")])
def test_an_event_that_takes_part_in_no_firing_is_explained(operators: str, name: str) -> None:
    event = Event(id="1", source="/s", type="t", data=_joined(name))
    found = explain(rule(operators, "${data.n}" if operators == ABSENT else "${first.data.n}"), event)
    assert (found.fires, found.args) == (True, None)


def test_a_list_may_be_in_the_rule_file() -> None:
    listed = f'join: {{{K}, list: [1, 2], by: "${{data.n}}", deadline: 10s}}'
    assert ended(listed, [(0, "a2"), (1, "a1")]) == [(1, [2, 1])]


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("${sum.data.n}", 18),
        ("${min.data.n}", 1),
        ("${max.data.n}", 9),
        ("${mean.data.n}", 4.5),
        ("${p50.data.n}", 3),
        ("${p95.data.n}", 9),
        ("${p1.data.n}", 1),
        ("${distinct.data.k}", ["a", "b"]),
        ("${max.data.n - min.data.n}", 8),
        ("${count}: ${sum.data.n}", "4: 18"),
    ],
)
def test_arguments_may_aggregate_a_batch(reference: str, expected: Any) -> None:
    events = [(0, "a1"), (1, "b3"), (2, "a5"), (3, "a9")]
    assert fired("batch: {count: 4}", events, reference) == [(3, expected)]


def test_an_aggregate_of_texts_is_a_dead_letter() -> None:
    found = simulate(
        rule("batch: {count: 1}", "${sum.data.k}"), [(0, Event(id="1", source="/s", type="t", data={"k": "x"}))]
    )
    assert found[0].trouble == "${sum...} is of numbers, and an event has 'x'"


@pytest.mark.parametrize(
    ("operators", "message"),
    [
        ("debounce: {max: 5s}", "`debounce` lacks the key 'quiet'"),
        ("debounce: {quiet: 5s, max: 4s}", "debounce.max is shorter than debounce.quiet"),
        ("throttle: {count: 3}", "`throttle` lacks the key 'per'"),
        ("throttle: {count: 0, per: 1s}", "throttle.count is 0; it takes 1 to 1,000,000"),
        ("sample: {ttl: 1s}", "`sample` needs `first` or `every`, or both"),
        ("sample: {first: 1, last: true}", "`sample` needs `first` or `every`, or both"),
        ("sample: {select: 3}", "`sample` with `select` needs the key 'of'"),
        ("sample: {first: 3, of: 4}", "sample.of is for `last` and `select`"),
        ("sample: {last: 3, of: 4}", "sample.last is true, or left out"),
        ("sample: {last: true, of: '${data.n | int}'}", "sample.of is one path to a number of events"),
        ("sample: {last: true, of: 4}, batch: {count: 3}", "`sample` with `of` has to be the last operator"),
        ("sample: {evry: 1}", "`sample` has no key 'evry'"),
        ("count: {n: 3}", "`count` lacks the key 'within'"),
        ("join: {count: 3}", "`join` lacks the key 'deadline'"),
        ("join: {deadline: 3s}", "`join` lacks what it waits for: `all`, `count` or `list`"),
        (
            "join: {count: 3, list: [a], by: x, deadline: 3s}",
            "`join` waits for `all` patterns, for a `count` or for a `list`",
        ),
        ("join: {all: {}, deadline: 3s}", "join.all is a mapping of 1 to 50 names to patterns"),
        (
            'join: {all: "${data.all}", deadline: 3s}',
            'or that the event has: list: "${data.parts}", by: "${data.part}"',
        ),
        ("join: {all: {a.b: {match: {id: x}}}, deadline: 3s}", "join.all: 'a.b' is not a name"),
        ("join: {all: {a: 7}, deadline: 3s}", "join.all.a is a trigger's name, or a mapping of `on` and `match`"),
        ("join: {all: {a: {when: x}}, deadline: 3s}", "join.all.a has no key 'when'"),
        ("join: {all: {a: nowhere}, deadline: 3s}", "there is no trigger 'nowhere'"),
        ("join: {all: {a: {match: {id: x}}}, by: x, deadline: 3s}", "`join.by` is for `count` and `list`"),
        ("sequence: {within: 1s}", "`sequence` lacks the key 'steps'"),
        ("sequence: {steps: [{a: {match: {id: x}}}], within: 1s}", "sequence.steps is a list of two or more steps"),
        ("sequence: {steps: [{a: x, b: y}, {c: z}], within: 1s}", "sequence.steps has one name, not 'a', 'b'"),
        ("sequence: {steps: {a: x, b: y}, within: 1s}", "sequence.steps is a list of two or more steps"),
        ("absent: {after: {match: {id: x}}, within: 1s}", "`absent` lacks the key 'expect'"),
        ("join: {list: [a], deadline: 3s}", "`join.list` needs `by`"),
        ("join: {count: 3, deadline: 3s, then: fail}", "join.then is 'fail'"),
        ("join: {count: 3, deadline: 3s, by: 7}", "join.by is a text with ${...}, not a whole number"),
        ("after: {}", "`after` lacks the key 'delay'"),
        ("after: 31d", "after: it takes more than 0 and at most 30d"),
        ("after: [1]", "`after` is a mapping, not a list"),
        ("debounce: {quiet: 1s}, after: 1s", "`debounce` buffers events, and `after` would come after it"),
        ("order_by: {key: a}", "`order_by` lacks the key 'by'"),
        ("order_by: '${data.n | int}'", "order_by.by is one path to a number"),
        ("order_by: {by: '${data.n}', on_block: skip}", "`order_by` with `on_block: skip` needs the key 'within'"),
        ("order_by: {by: '${data.n}', on_block: skp, within: 1s}", "order_by.on_block is 'skp'"),
        ("order_by: {by: '${data.n}', within: 1s}", "order_by.within is for `on_block: skip`"),
        ("order_by: {by: '${data.n}', from: a}", "order_by.from is a whole number from 0 on"),
        ("window: {late: 5s}", "`window` needs one of `tumbling`, `sliding` and `session`"),
        ("window: {tumbling: 5s, session: 5s}", "`window` needs one of `tumbling`, `sliding` and `session`"),
        ("window: {sliding: 5s}", "`window` lacks the key 'every'"),
        ("window: {sliding: 5s, every: 2s}", "window.sliding is 5s, which is not 1 to 100 times `every`"),
        ("window: {tumbling: 5s, every: 1s}", "window.every is for `sliding`"),
        ("window: {session: 5s, size: 4s}", "window.size is not longer than window.session"),
        ("window: {tumbling: 5s, late: 1s}", "window.late is for windows by `time`"),
        ("window: {tumbling: 5s, time: '${data.t}'}", "`window` with `time` needs the key 'late'"),
        (
            "window: {tumbling: 5s, time: '${data.t | int}', late: 1s}",
            "window.time is one path to a time, or `accepted`",
        ),
        ("window: {tumbling: 5s, time: 3, late: 1s}", "window.time is one path to a time, or `accepted`"),
        ("window: {tumbling: 1ms, time: '${data.t}', late: 1s}", "more than 1,000 windows would be open at a time"),
        ("count: {n: 3, within: 1s}, batch: {count: 2}", "`count` buffers events, and `batch` would come after it"),
    ],
)
def test_mistakes_are_named(operators: str, message: str) -> None:
    with pytest.raises(RuleFileError) as e:
        rule(operators, "1")
    assert message in str(e.value)


@pytest.mark.parametrize("reference", ["${sum.data.n}", "${each.data.n}"])
def test_arguments_of_one_event_have_no_aggregates(reference: str) -> None:
    with pytest.raises(RuleFileError, match="is for the arguments of rules that run for many events"):
        rule("throttle: {per: 1s}", reference)
