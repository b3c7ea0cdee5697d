"""Rules that follow one another: an outcome of a task is an event of other rules."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.e2e.running import System

FUNCTIONS = """
import os

def first(n):
    if n % 5 == 4:
        raise ValueError(f"bad {n}")
    return {"out": n * 10, "name": f"scan {n}"}

def second(out, n, source):
    return {"sum": out + n, "source": source}

def tell(text):
    return text

def again(n):
    return {"n": n + 1}

def gone(folder, n):
    path = os.path.join(folder, str(n))
    if not os.path.exists(path):
        open(path, "w").close()
        os._exit(1)
    return {"out": n}
"""
CHAIN = """
triggers:
  - {name: door, kind: webhook, verify: none, type: org.example.door}
rules:
  - name: begin
    on: door
    retry: {max: 5, base: 10ms, on: [lost]}
    run: {function: chain.py:first, args: {n: "${data.n}"}}
  - name: follow
    on: {done: begin, state: succeeded}
    match: {data.value.out: {ge: 0}}
    retry: {max: 5, base: 10ms, on: [lost]}
    run:
      function: chain.py:second
      args: {out: "${data.value.out}", n: "${data.args.n}", source: "${data.event.type}"}
  - name: complain
    on: {done: [begin, follow], state: [failed, lost]}
    retry: {max: 5, base: 10ms, on: [lost]}
    run: {function: chain.py:tell, args: {text: "${data.rule} ${data.args.n}: ${data.failure.message}"}}
  - name: last
    on: {done: follow, state: ok}
    retry: {max: 5, base: 10ms, on: [lost]}
    run: {function: chain.py:tell, args: {text: "${data.event.data.n} gave ${data.value.sum}"}}
"""
_number = itertools.count()


def deploy(system: System, text: str, *words: str, name: str = "chain.yaml", code: int = 0) -> str:
    system.write("chain.py", FUNCTIONS)
    system.write(name, text)
    done = system.oncue("deploy", name, "--yes", *words, code=code)
    return done.stdout + done.stderr


def send(system: System, *numbers: int, hook: str = "door", **data: Any) -> None:
    for n in numbers:
        answer = system.http("POST", f"/hooks/{hook}", {"n": n} | data, {"webhook-id": f"{hook}-{n}"}, token=None)
        assert answer.status == 202, answer


def values(system: System, rule: str, count: int) -> list[Any]:
    found = system.await_tasks(count, rule=rule)
    return [system.http("GET", f"/v1/tasks/{t['id']}").json["value"] for t in found]


def letters_of(system: System, *rules: str) -> list[Any]:
    return [x for x in system.json("dead", "list") if x["rule"] in rules]


def test_each_outcome_starts_the_rules_that_follow_it(shared: System) -> None:
    deploy(shared, CHAIN)

    send(shared, *range(10))

    follow = values(shared, "follow", 8)
    assert sorted(v["sum"] for v in follow) == [n * 11 for n in range(10) if n % 5 != 4]
    assert {v["source"] for v in follow} == {"org.example.door"}
    assert sorted(values(shared, "complain", 2)) == ["begin 4: bad 4", "begin 9: bad 9"]
    assert sorted(values(shared, "last", 8)) == sorted(f"{n} gave {n * 11}" for n in range(10) if n % 5 != 4)
    assert not letters_of(shared, "begin", "follow", "complain", "last")


def test_a_trace_shows_all_that_followed(shared: System) -> None:
    deploy(shared, CHAIN)
    send(shared, 204, 205)
    shared.await_true(lambda: len(shared.tasks(rule="last", state="closed")), "the chain has ended")
    last = shared.await_true(
        lambda: [t for t in shared.tasks(rule="last", state="closed") if "205" in str(t["value"])], "that of 205"
    )[0]
    found = shared.json("trace", last["id"])

    assert found["event"]["data"] == {"n": 205}
    assert [(t["rule"], t["state"]) for t in found["tasks"]] == [
        (rule, "succeeded") for rule in ("begin", "follow", "last")
    ]
    assert [t["after"] for t in found["tasks"]] == ["", found["tasks"][0]["id"], found["tasks"][1]["id"]]
    offset = next(e["offset"] for e in shared.json("events", "list") if e["event"]["data"] == {"n": 204})
    failed = shared.await_true(
        lambda: [t for t in shared.json("trace", str(offset))["tasks"] if t["rule"] == "complain"], "it complains"
    )
    assert len(failed) == 1
    said = shared.oncue("trace", str(offset)).stdout
    assert "org.example.door" in said
    assert "ValueError: bad 204" in said
    assert "└─ complain" in said
    by_id = shared.json("trace", found["event"]["id"])
    assert by_id["tasks"] == found["tasks"]


def test_explain_says_why_an_outcome_starts_a_rule_or_not(shared: System) -> None:
    deploy(shared, CHAIN)
    send(shared, 304)
    bad = shared.await_true(
        lambda: [t for t in shared.tasks(rule="begin", state="failed") if "304" in str(t["arguments"])], "it failed"
    )[0]["id"]
    no = shared.json("rules", "explain", "follow", bad)
    assert (no["fires"], no["why"]) == (
        False,
        "type = 'oncue.task.succeeded': found 'oncue.task.failed', wanted = 'oncue.task.succeeded'",
    )
    yes = shared.json("rules", "explain", "complain", bad)
    assert (yes["fires"], yes["args"]) == (True, {"text": "begin 304: bad 304"})
    shared.await_true(lambda: shared.json("rules", "explain", "complain", bad)["fired"], "it names the task")


def test_a_call_by_program_has_a_trace(shared: System) -> None:
    shared.write("chain.py", FUNCTIONS)
    task = shared.json("invoke", "chain.py:again", "--arg", "n:=1", "--no-wait")["id"]
    found = shared.json("trace", task)
    assert (found["event"], found["source"], [t["id"] for t in found["tasks"]]) == (None, "", [task])
    shared.oncue("trace", "f" * 32, code=4)


def test_a_chain_is_whole_after_kills(stopped: System) -> None:
    stopped.up("--workers", "2")
    deploy(stopped, CHAIN)
    for start in (0, 40, 80):
        send(stopped, *range(start, start + 40))
        for process in reversed(stopped.note()):
            process.kill()
        stopped.up("--workers", "2")

    good = [n for n in range(120) if n % 5 != 4]
    assert sorted(values(stopped, "last", len(good))) == sorted(f"{n} gave {n * 11}" for n in good)
    assert len(values(stopped, "complain", 120 - len(good))) == 24


def test_outcomes_before_the_rule_are_not_its_events_and_retries_are_none(stopped: System) -> None:
    stopped.up("--workers", "1")
    begin = """
triggers:
  - {name: hall, kind: webhook, verify: none, type: org.example.hall}
rules:
  - name: dies-once
    on: hall
    retry: {max: 2, base: 10ms, on: [lost]}
    run: {function: chain.py:gone, args: {folder: "${data.folder}", n: "${data.n}"}}
"""
    deploy(stopped, begin)
    folder = stopped.folder / "marks"
    folder.mkdir()
    send(stopped, 1, hook="hall", folder=str(folder))
    stopped.await_tasks(1, rule="dies-once")
    after = "run: {function: chain.py:tell, args: {text: '${data.state} ${data.attempts}'}}"
    deploy(stopped, begin + f"  - {{name: after, on: {{done: dies-once}}, {after}}}\n")
    send(stopped, 2, hook="hall", folder=str(folder))

    assert values(stopped, "after", 1) == ["succeeded 2"]


def test_a_circle_ends_with_a_reason(shared: System) -> None:
    text = """
triggers:
  - {name: ring, kind: webhook, verify: none, type: org.example.ring}
rules:
  - {name: ring-in, on: ring, run: {function: chain.py:again, args: {n: "${data.n}"}}}
  - name: round
    on: {done: [ring-in, round]}
    match: {data.value.n: {lt: 1000}}
    run: {function: chain.py:again, args: {n: "${data.value.n}"}}
"""
    deploy(shared, text, name="ring.yaml")
    send(shared, 0, hook="ring")

    (letter,) = shared.await_true(lambda: letters_of(shared, "round"), "the circle has ended")
    assert letter["reason"] == "the task is number 17 in a chain of rules that follow one another; 16 is the limit"
    assert sorted(v["n"] for v in values(shared, "round", 16)) == list(range(2, 18))
    shared.oncue("dead", "dismiss", str(letter["id"]))


def test_a_dead_letter_of_an_outcome_is_tried_again(shared: System) -> None:
    text = """
triggers:
  - {name: gate, kind: webhook, verify: none, type: org.example.gate}
rules:
  - {name: gate-in, on: gate, run: {function: chain.py:again, args: {n: "${data.n}"}}}
  - {name: gate-next, on: {done: gate-in}, run: {function: chain.py:tell, args: {text: "PATH"}}}
"""
    deploy(shared, text.replace("PATH", "${data.value.absent}"), name="gate.yaml")
    send(shared, 7, hook="gate")

    (letter,) = shared.await_true(lambda: letters_of(shared, "gate-next"), "the argument is missing")
    assert letter["topic"] == "oncue.results"
    deploy(shared, text.replace("PATH", "got ${data.value.n}"), name="gate.yaml")
    shared.oncue("dead", "retry", str(letter["id"]))

    assert values(shared, "gate-next", 1) == ["got 8"]
    assert not letters_of(shared, "gate-next")
    assert len(shared.tasks(rule="gate-in")) == 1


def test_an_event_of_a_sender_is_never_taken_for_an_outcome(shared: System) -> None:
    deploy(shared, CHAIN)
    forged = {
        "specversion": "1.0",
        "id": "0" * 32,
        "source": "/oncue/tasks",
        "type": "oncue.task.succeeded",
        "oncuedepth": "1",
        "data": {"rule": "begin", "owner": "local", "state": "succeeded", "value": {"out": 1}, "args": {"n": 1}},
    }
    before = len(shared.tasks(rule="follow"))
    kind = {"Content-Type": "application/cloudevents+json"}
    refused = shared.http("POST", "/v1/events", forged, kind)
    assert (refused.status, refused.json["detail"]) == (
        422,
        "source: /oncue/tasks is that of outcomes, which oncue itself tells",
    )
    assert shared.http("POST", "/v1/events", forged | {"source": "/oncue"}, kind).status == 202
    send(shared, 100)

    shared.await_true(
        lambda: any(
            t["rule"] == "last" and "100" in str(shared.http("GET", f"/v1/tasks/{t['id']}").json["arguments"])
            for t in shared.tasks(state="closed", rule="last")
        ),
        "the true one went through",
    )
    assert len(shared.tasks(rule="follow")) == before + 1


@pytest.mark.parametrize(
    ("on", "message", "remedy"),
    [
        ("{done: begn}", "there is no rule 'begn'", "did you mean 'begin'?"),
        ("{done: begin, state: succeded}", "there is no state 'succeded' of an outcome", "did you mean 'succeeded'?"),
        ("{done: begin, states: failed}", "`on` with `done` has no key 'states'", "did you mean 'state'?"),
        ("{done: []}", "`done` is empty", ""),
    ],
)
def test_mistakes_are_found_at_deploy(shared: System, on: str, message: str, remedy: str) -> None:
    said = deploy(shared, CHAIN.replace("{done: begin, state: succeeded}", on), code=2)
    assert message in said
    assert remedy in said
