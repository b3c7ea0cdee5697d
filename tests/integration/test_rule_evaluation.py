"""Rules whose cost an outsider chooses: the loop goes on, the rule is paused, nothing is lost.

The engine runs on the embedded log; evaluators are real processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from oncue.log.base import Log
from oncue.protocol import cloudevents, payload
from oncue.protocol.codec import decode
from oncue.protocol.records import VERSION, Deployment, RuleSwitch
from oncue.protocol.topics import EVENTS, MATCHES
from oncue.rules.active_rules import ActiveRule
from oncue.rules.engine import Engine
from oncue.rules.evaluation.evaluator import CPU_S
from oncue.rules.evaluation.messages import RULES_BYTES
from oncue.rules.evaluation.rule_source import pack_rule, rule_hash, unpack_rule
from oncue.rules.evaluation.trials import TrialFile
from oncue.rules.operators.records import Match
from oncue.rules.parsing.rule_file import parse
from tests.integration.embedded_site import record as site_record
from tests.integration.embedded_site import rule as site_rule
from tests.integration.embedded_site import site_in
from tests.integration.test_rule_engine import (
    Endpoints,
    all_of,
    consume,
    dead,
    deployed,
    frames,
    record,
    rule,
    tasks,
    with_log,
)

NEVER = "data.l.all(x, data.l.all(y, data.l == data.l && data.l == data.l))"
NUMBERS = {"l": list(range(9_000)), "n": 1}
RANDOM = "".join(random.Random(1).choices("ab", k=600_000))  # so that the expression's states do not repeat
HELD_S = 0.25  # a stall by these rules would be seconds long


@contextlib.asynccontextmanager
async def metered() -> AsyncIterator[list[float]]:
    """Yield a list that gets the longest time for which the event loop was held.

    It is the CPU time of the loop's thread between two ticks: a loaded machine adds nothing to it.
    """
    longest = [0.0]

    async def ticks() -> None:
        while True:
            start = time.thread_time()
            await asyncio.sleep(0.005)
            longest[0] = max(longest[0], time.thread_time() - start)

    ticking = asyncio.create_task(ticks())
    try:
        yield longest
    finally:
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)


def with_engine(folder: Path, body: Callable[[Log, Engine], Awaitable[None]], **given: Any) -> None:
    async def main(log: Log) -> None:
        engine = Engine(log, Endpoints(), **given)
        try:
            await body(log, engine)
        finally:
            await engine.close()

    with_log(folder, main)


@pytest.mark.parametrize(
    ("hostile", "data"),
    [
        ({"when": "data.l.all(x, data.l == data.l)"}, {"l": list(range(100_000)), "n": 1}),
        ({"when": NEVER}, NUMBERS),
        ({"when": "data.s.contains(data.t)"}, {"s": "a" * 600_000, "t": "a" * 300_000 + "b", "n": 1}),
        ({"match": {"data.s": {"regex": "[ab]*a[ab]{900}[ab]{900}[ab]{900}c"}}}, {"s": RANDOM, "n": 1}),
    ],
    ids=["list equality in a loop", "never ends", "search", "regular expression"],
)
def test_a_dear_rule_is_paused_and_holds_nobody(hostile: dict[str, Any], data: Any, tmp_path: Path) -> None:
    async def body(log: Log, engine: Engine) -> None:
        engine.update([deployed([rule("dear", **hostile), rule("good")])])
        await log.append(EVENTS, [record(1, data), record(2), record(3, data)])

        async with metered() as longest:
            await consume(log, engine)

        assert longest[0] < HELD_S
        assert [payload.unpack_args(t.args) for t in await tasks(log)] == [((), {"n": n}) for n in (1, 2, 1)]
        states = {info.name: (info.state, info.why) for info in engine.rules()}
        assert states["good"] == ("active", "")
        assert states["dear"][0] == "paused"
        assert "CPU time" in states["dear"][1]
        (letter,) = await dead(log)
        assert (letter.rule, letter.owner, letter.record) == ("dear", "ann", b"")
        assert 2 in letter.offsets  # it was cut, or came after the pause
        assert "oncue rules resume dear" in letter.remedy

    with_engine(tmp_path, body)


def test_a_large_event_is_tested_apart_with_the_same_result(tmp_path: Path) -> None:
    async def body(log: Log, engine: Engine) -> None:
        args = {"n": "${data.n}", "sum": "n is ${data.n}, ${data.l.1}"}
        rules = [
            rule("a", {"function": "f", "args": args}, when="data.l.all(x, x >= 0) && data.n < 3"),
            rule(
                "b",
                {"function": "f", "args": ["${data.n}"]},
                dedupe={"key": "${data.n}", "ttl": "1m"},
                when="data.n > 1",
            ),
            rule("c", {"function": "f", "args": ["${data.missing}"]}, match={"data.n": 2}),
            rule("d", when="data.nope == 1"),
        ]
        engine.update([deployed(rules)])
        large = [record(n, {"l": list(range(7_000)), "n": n}) for n in range(1, 4)]
        await log.append(EVENTS, [large[0], record(10), large[1], large[2]])

        await consume(log, engine)

        found = [(t.event, payload.unpack_args(t.args)) for t in await tasks(log)]
        assert found == [((("/s", str(n))), ((), {"n": n, "sum": f"n is {n}, 1"})) for n in (1, 2)]
        matches = [decode(Match, r.value) for r in await all_of(log, MATCHES)]
        assert [(m.rule, m.event.id, m.stages[0].key) for m in matches] == [
            ("b", "10", "10"),
            ("b", "2", "2"),
            ("b", "3", "3"),
        ]
        (letter,) = await dead(log)
        assert (letter.rule, letter.stage, letter.event) == ("c", "args", ("/s", "2"))
        assert letter.record == large[1].value

    with_engine(tmp_path, body)


def test_a_paused_rule_goes_on_after_a_resume_or_a_change(tmp_path: Path) -> None:
    async def body(log: Log, engine: Engine) -> None:
        dear = [deployed([rule("r", when=NEVER)])]
        engine.update(dear)
        await log.append(EVENTS, [record(1, NUMBERS)])
        await consume(log, engine)
        why, _, repair = engine.rules()[0].why.partition("; ")
        assert repair == "correct the rule and deploy it, or `oncue rules resume r`"
        recorded = RuleSwitch(
            VERSION, "r", False, "oncue", why, 1, rule_hash(parse(dear[0].text, "f", triggers=None).rules[0])
        )

        engine.update(dear, [recorded])
        assert (engine.rules()[0].state, engine.rules()[0].why) == ("paused", f"{why}; {repair}")
        engine.update(dear, [RuleSwitch(VERSION, "r", True, "ann", "", 2)])
        assert engine.rules()[0].state == "active"
        engine.update([deployed([rule("r", when="data.n == 1")], 2)], [recorded])
        assert engine.rules()[0].state == "active"

        await log.append(EVENTS, [record(2, NUMBERS)])
        await consume(log, engine)
        assert [t.event for t in await tasks(log)] == [("/s", "2")]

    with_engine(tmp_path, body)


def test_a_rule_that_was_tried_when_the_server_died_is_not_tried_again(tmp_path: Path) -> None:
    text = deployed([rule("r", when=NEVER)])
    mark = rule_hash(parse(text.text, "f", triggers=None).rules[0])
    file = tmp_path / "trial.json"
    TrialFile(file).add(mark, "r")
    recorded: list[tuple[str, str]] = []

    async def record_pause(entry: ActiveRule, why: str) -> bool:
        recorded.append((entry.rule.name, why))
        return True

    async def body(log: Log, engine: Engine) -> None:
        engine.update([text])
        await engine.judge.pause_left(engine.active_rules.entries.values())
        assert engine.rules()[0].state == "paused"
        assert [name for name, _ in recorded] == ["r"]
        assert "while this rule was being tried" in recorded[0][1]
        assert not file.exists()
        await log.append(EVENTS, [record(1, NUMBERS)])
        async with metered() as longest:
            await consume(log, engine)
        assert longest[0] < HELD_S
        assert (await dead(log))[0].offsets == (0,)
        assert len(recorded) == 1

    with_engine(tmp_path, body, record_pause=record_pause, trials=TrialFile(file))


def test_a_mark_is_durable_while_a_rule_is_tried_and_gone_after_it(tmp_path: Path) -> None:
    file = tmp_path / "trial.json"
    marks: list[dict[str, str]] = []

    async def record_pause(entry: ActiveRule, why: str) -> bool:
        marks.append(json.loads(file.read_text()))
        return True

    async def body(log: Log, engine: Engine) -> None:
        engine.update([deployed([rule("r", when=NEVER)])])
        await log.append(EVENTS, [record(1, NUMBERS)])
        await consume(log, engine)
        assert [list(found.values()) for found in marks] == [["r"]]
        assert not file.exists()

    with_engine(tmp_path, body, record_pause=record_pause, trials=TrialFile(file))


def test_an_evaluator_that_somebody_kills_is_replaced(tmp_path: Path) -> None:
    async def body(log: Log, engine: Engine) -> None:
        engine.update([deployed([rule("r", when="data.l.all(x, x >= 0)")])])
        large = {"l": list(range(7_000)), "n": 1}
        others = {p.pid for p in psutil.Process().children()}
        await log.append(EVENTS, [record(1, large)])
        await consume(log, engine)
        (child,) = [p for p in psutil.Process().children() if p.pid not in others and p.status() != "zombie"]
        os.kill(child.pid, signal.SIGKILL)

        await log.append(EVENTS, [record(2, large)])
        await consume(log, engine)

        assert [t.event for t in await tasks(log)] == [("/s", "1"), ("/s", "2")]
        assert engine.rules()[0].state == "active"

    with_engine(tmp_path, body)


def test_an_evaluator_that_somebody_stops_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(log: Log, engine: Engine) -> None:
        engine.update([deployed([rule("r", when="data.l.all(x, x >= 0)")])])
        large = {"l": list(range(7_000)), "n": 1}
        await log.append(EVENTS, [record(1, large)])
        await consume(log, engine)
        process = psutil.Process(engine.judge._evaluator._process.pid)
        process.send_signal(signal.SIGSTOP)
        monkeypatch.setattr("oncue.rules.evaluation.evaluator.ANSWER_S", 1.0)

        await log.append(EVENTS, [record(2, large)])
        async with metered() as longest:
            await consume(log, engine)

        assert longest[0] < HELD_S
        assert not process.is_running()
        assert engine.rules()[0].state == "active"
        made, letters = [t.event for t in await tasks(log)], await dead(log)
        assert made == [("/s", "1"), ("/s", "2")] or (len(letters) == 1 and letters[0].offsets == (1,))

    with_engine(tmp_path, body)


def test_a_rule_that_waits_for_a_file_is_paused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CEL's library opens the file that a time zone names."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    monkeypatch.setattr("oncue.rules.evaluation.evaluator.ANSWER_S", 2.0)

    async def body(log: Log, engine: Engine) -> None:
        engine.update([deployed([rule("r", when="timestamp(data.t).getHours(data.zone) >= 0"), rule("good")])])
        when = "2026-01-01T00:00:00Z"
        await log.append(EVENTS, [record(1, {"t": when, "zone": "Europe/Berlin", "n": 1})])
        await log.append(EVENTS, [record(2, {"t": when, "zone": str(fifo), "n": 2})])
        async with metered() as longest:
            await consume(log, engine)
        assert longest[0] < HELD_S
        found = {(f.call.rule, task.event) for f in await frames(log) for task in f.tasks}
        assert found == {("r", ("/s", "1")), ("good", ("/s", "1")), ("good", ("/s", "2"))}
        assert "waited for something outside" in engine.rules()[0].why
        assert (await dead(log))[0].offsets == (1,)

    with_engine(tmp_path / "log", body)


def test_rules_of_an_owner_that_waste_time_do_not_waste_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oncue.rules.evaluation.judge.WASTED_S", 1.0)

    async def body(log: Log, engine: Engine) -> None:
        others = Deployment(
            VERSION, "g", 1, "ann2", json.dumps({"rules": [rule("other", when="data.l.all(x, x >= 0)")]}), {}
        )
        engine.update([deployed([rule(f"r{n}", when=NEVER) for n in range(20)]), others])
        await log.append(EVENTS, [record(1, NUMBERS)])
        await consume(log, engine)
        states = [info.state for info in engine.rules()]
        assert states.count("paused") == 2
        letters = await dead(log)
        assert {letter.rule for letter in letters} == {"other", *(f"r{n}" for n in range(20))}
        reasons = {letter.rule: letter.reason for letter in letters}
        assert "rules of ann that took too long" in reasons["r19"]
        assert "no endpoint" in reasons["other"]  # it was tested, and matched

    with_engine(tmp_path, body)


@pytest.mark.parametrize("others", [True, False])
def test_many_rules_of_an_owner_do_not_keep_others_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: bool
) -> None:
    monkeypatch.setattr("oncue.rules.evaluation.owner_shares.LENT_S", 0.1)
    pairs = "data.l.all(x, data.l.all(y, x != y || x == y))"  # some milliseconds: no rule is over its budget

    async def body(log: Log, engine: Engine) -> None:
        owners = ("ann", "bob") if others else ("ann", "ann")
        many, one = [rule(f"r{n}", when=pairs) for n in range(100)], [rule("last")]
        engine.update(
            [
                Deployment(VERSION, label, 1, owner, json.dumps({"rules": rules}), {"f": "f" * 64})
                for label, owner, rules in zip("fg", owners, (many, one), strict=True)
            ]
        )
        await log.append(EVENTS, [record(1, {"l": list(range(60)), "n": 1})])
        await consume(log, engine)
        left = [letter for letter in await dead(log) if "kept those of others waiting" in letter.reason]
        assert [(letter.owner, letter.offsets) for letter in left] == ([("ann", (0,))] if others else [])
        infos = {info.name: info for info in engine.rules()}
        assert all(info.state == "active" for info in infos.values())
        assert "kept those of others" not in infos["last"].why

    with_engine(tmp_path, body)


def test_arguments_without_end_are_a_dead_letter(tmp_path: Path) -> None:
    async def body(log: Log, engine: Engine) -> None:
        bomb = {"function": "f", "args": {f"a{n}": "${event}" * 10 for n in range(300)}}
        engine.update([deployed([rule("bomb", bomb), rule("good")])])
        await log.append(EVENTS, [record(1, {"s": "x" * 900_000, "n": 1})])
        async with metered() as longest:
            await consume(log, engine)
        assert longest[0] < HELD_S
        assert len(await tasks(log)) == 1
        (letter,) = await dead(log)
        assert letter.rule == "bomb"

    with_engine(tmp_path, body)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory; run it there")
def test_a_condition_without_end_of_memory_is_a_dead_letter(tmp_path: Path) -> None:
    async def body(log: Log, engine: Engine) -> None:
        engine.update([deployed([rule("hungry", when="data.l.map(x, data.s + data.s).size() > 5"), rule("good")])])
        await log.append(EVENTS, [record(1, {"s": "x" * 800_000, "l": list(range(9_000)), "n": 1})])
        await consume(log, engine)
        assert len(await tasks(log)) == 1
        (letter,) = await dead(log)
        assert letter.rule == "hungry"
        assert "memory" in letter.reason or "CPU time" in letter.reason

    with_engine(tmp_path, body)


def test_one_event_that_matches_thousands_of_rules_holds_nobody(tmp_path: Path) -> None:
    async def body(log: Log, engine: Engine) -> None:
        rules = [rule(f"r{n}", when="data.n > 0 && data.tags.exists(t, t == 'raw')") for n in range(3_000)]
        await asyncio.to_thread(engine.update, [deployed(rules)])
        await log.append(EVENTS, [record(1, {"n": 1, "tags": ["raw"], "pad": "x" * 3_000})])
        async with metered() as longest:
            await consume(log, engine)
        assert longest[0] < HELD_S
        assert len(await tasks(log)) == 3_000

    with_engine(tmp_path, body)


def test_a_large_window_is_made_apart_with_the_same_arguments(tmp_path: Path) -> None:
    async def body() -> None:
        async with site_in(tmp_path) as site:
            args = {"l": "${each.data.l}", "text": "${last.data.l}", "count": "${count}", "key": "${key}"}
            site.deploy(site_rule(args=args, batch={"count": 3, "key": "${data.k}"}))
            numbers = list(range(20_000))
            async with metered() as longest, site.running():
                await site.emit(*(site_record(n, l=[n, *numbers], k="a") for n in range(3)))
                await site.settled()
            assert longest[0] < HELD_S
            (found,) = await site.arguments()
            assert [row[:2] for row in found["l"]] == [[0, 0], [1, 0], [2, 0]]
            assert found["text"] == [2, *numbers]
            assert (found["count"], found["key"]) == (3, "a")
            assert not await site.dead()

    asyncio.run(body())


def test_a_window_whose_arguments_have_no_end_is_a_dead_letter(tmp_path: Path) -> None:
    async def body() -> None:
        async with site_in(tmp_path) as site:
            args = {f"a{n}": "${each.data.s} ${each.data.s}" for n in range(2_000)}
            site.deploy(site_rule(args=args, batch={"count": 2}), site_rule("good", batch={"count": 2}))
            async with metered() as longest, site.running():
                await site.emit(*(site_record(n, s="x" * 300_000) for n in range(4)))
                await site.settled()
            assert longest[0] < HELD_S
            assert len(await site.arguments()) == 2  # of the other rule
            letters = await site.dead()
            assert {letter.rule for letter in letters} == {"r"}
            assert len(letters) == 2

    asyncio.run(body())


@pytest.mark.parametrize("others", [True, False])
def test_many_windows_of_an_owner_do_not_keep_others_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: bool
) -> None:
    monkeypatch.setattr("oncue.rules.evaluation.owner_shares.LENT_S", 0.02)

    async def body() -> None:
        async with site_in(tmp_path) as site:
            args = {f"a{n}": "${each.data.s} ${each.data.s}" for n in range(20)}  # long enough for an evaluator
            many = [site_rule(f"r{n}", args=args, batch={"count": 1}) for n in range(20)]
            last = [site_rule("last", batch={"count": 1})]
            site.engine.update(
                [
                    Deployment(VERSION, label, 1, owner, json.dumps({"rules": rules}), {"f": "hash-f"})
                    for label, owner, rules in (("f", "ann", many), ("g", "bob" if others else "ann", last))
                ]
            )
            async with site.running():
                await site.emit(site_record(1, s="x" * 50_000))
                await site.settled()
            left = [letter for letter in await site.dead() if "kept those of others waiting" in letter.reason]
            assert bool(left) == others
            assert all(letter.owner == "ann" for letter in left)
            assert len(await site.tasks()) == 21 - len(left)

    asyncio.run(body())


def test_one_event_makes_a_bounded_number_of_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oncue.rules.batch_result.EVENT_TASKS", 500)

    async def body(log: Log, engine: Engine) -> None:
        runs = [{"function": "f", "args": [n]} for n in range(100)]
        engine.update([deployed([rule(f"r{n}", runs) for n in range(10)])])
        await log.append(EVENTS, [record(1), record(2)])
        async with metered() as longest:
            await consume(log, engine)
        assert longest[0] < HELD_S
        assert len(await tasks(log)) == 2 * 600
        letters = await dead(log)
        assert [letter.rule for letter in letters] == [f"r{n}" for n in range(6, 10)] * 2
        assert "the most that one event may make" in letters[0].reason

    with_engine(tmp_path, body)


def test_one_event_makes_a_bounded_number_of_matches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oncue.rules.batch_result.EVENT_MATCHES_BYTES", 1_000_000)
    monkeypatch.setattr("oncue.rules.engine.HELD_BYTES", 500_000)
    keeps = {"function": "f", "args": ["${each.data.s}"]}

    async def body(log: Log, engine: Engine) -> None:
        rules = [rule(f"r{n}", keeps, batch={"count": 9}) for n in range(20)]
        bobs = json.dumps({"rules": [rule("bobs", keeps, batch={"count": 9})]})
        engine.update([deployed(rules), Deployment(VERSION, "g", 1, "bob", bobs, {})])
        commits = 0
        real = log.commit

        async def counted(*given: Any, **more: Any) -> Any:
            nonlocal commits
            commits += 1
            return await real(*given, **more)

        monkeypatch.setattr(log, "commit", counted)
        await log.append(EVENTS, [record(n, {"s": "x" * 100_000, "n": n}) for n in range(3)])
        await consume(log, engine)
        matched = [decode(Match, r.value).rule for r in await all_of(log, MATCHES)]
        assert matched == [*(f"r{n}" for n in range(10)), "bobs"] * 3
        letters = await dead(log)
        assert [letter.rule for letter in letters] == [f"r{n}" for n in range(10, 20)] * 3
        assert "one event may make" in letters[0].reason
        assert commits == 3  # what one holds in memory is bounded

    with_engine(tmp_path, body)


def test_a_large_event_that_many_rules_fail_is_not_stored_once_for_each(tmp_path: Path) -> None:
    async def body(log: Log, engine: Engine) -> None:
        rules = [rule(f"r{n}", {"function": "f", "args": ["${data.missing}"]}) for n in range(40)]
        engine.update([deployed(rules)])
        await log.append(EVENTS, [record(1, {"s": "x" * 500_000, "n": 1})])
        await consume(log, engine)
        letters = await dead(log)
        assert len(letters) == 40
        assert sum(len(letter.record) for letter in letters) < 5_000_000
        assert all(letter.record or letter.offsets == (0,) for letter in letters)

    with_engine(tmp_path, body)


def test_an_explanation_is_bounded_too(tmp_path: Path) -> None:
    async def body(log: Log, engine: Engine) -> None:
        engine.update([deployed([rule("dear", when=NEVER), rule("good", when="data.n == 1")])])
        happened = cloudevents.from_record(record(1, NUMBERS).value)
        async with metered() as longest:
            dear, good = await asyncio.gather(engine.explain("dear", happened), engine.explain("good", happened))
        assert longest[0] < HELD_S
        assert not dear.fires
        assert f"{CPU_S:.1f} s of CPU time" in dear.why
        assert good.fires
        assert engine.rules()[0].state == "active"  # to ask is not to try

    with_engine(tmp_path, body)


@pytest.mark.parametrize(
    "given",
    [
        {"on": ["a", "b"], "match": {"data.n": {"gt": 1, "in": [1, True, None, 1e300]}}},
        {"on": {"type": "x.*"}, "match": {"not": {"data.a": {"regex": "^a{3}$"}}}, "when": "data.x == 1"},
        {"batch": {"count": 3, "key": "${data.k}"}, "run": {"function": "f", "args": ["${each.data.n}", {"b": 2**70}]}},
    ],
)
def test_a_rule_survives_its_way_to_the_evaluator(given: dict[str, Any]) -> None:
    text = Deployment(VERSION, "f", 1, "ann", json.dumps({"rules": [rule("r", **given)]}), {}).text
    original = parse(text, "f", triggers=None).rules[0]

    again = unpack_rule(pack_rule(original))

    assert again.source == original.source
    assert [c.describe() for c in again.conditions] == [c.describe() for c in original.conditions]
    assert rule_hash(again) == rule_hash(original)


def test_many_rules_are_kept_by_one_process_until_they_use_much_memory(
    tmp_path: Path,
) -> None:
    async def body(log: Log, engine: Engine) -> None:
        evaluator = engine.judge._evaluator
        engine.update(
            [deployed([rule(f"r{n}", when=f"data.l.all(x, data.l == data.l) && data.n < {n}") for n in range(270)])]
        )
        event = {"l": list(range(300)), "n": 1}  # too dear for the loop
        pids = []
        for n in range(3):
            await log.append(EVENTS, [record(n, event)])
            await consume(log, engine)
            assert evaluator._process.pid
            pids.append(evaluator._process.pid)
            if n == 1:
                evaluator._rules_bytes = RULES_BYTES + 1  # as its process said
        assert pids[0] == pids[1] != pids[2]
        assert len(await tasks(log)) == 3 * 268

    with_engine(tmp_path, body)
