"""Rules and events made to hold the server: it goes on, says so, and loses nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.many import Many, many_servers
from tests.e2e.running import System, has_ended
from tests.security.raw_http import in_threads
from tests.security.stall import check_no_stall

NEVER = "data.l.all(x, data.l.all(y, data.l == data.l && data.l == data.l))"
DEAR = "data.l.all(x, data.l == data.l)"
FUNCTION = "def seen(n):\n    return n\n"
NUMBERS = list(range(9_000))  # 44 kB


def rule(name: str, **more: Any) -> dict[str, Any]:
    run = {"function": "seen.py:seen", "args": {"n": "${data.n}"}}
    return {"name": name, "on": {"type": "numbers"}, "run": run} | more


def deploy(system: System, label: str, *rules: dict[str, Any], code: int = 0) -> None:
    system.write("seen.py", FUNCTION)
    system.write(f"{label}.yaml", json.dumps({"rules": rules}))
    system.oncue("deploy", f"{label}.yaml", "--yes", code=code)


def emit(system: System, n: int, numbers: list[int] | None = None) -> int:
    """Send event number `n`, and return that number."""
    data = {"n": n, "l": numbers or [n]}
    event = {"specversion": "1.0", "id": f"e{n}", "source": "/here", "type": "numbers", "data": data}
    answer = system.http("POST", "/v1/events", event, {"Content-Type": "application/cloudevents+json"})
    assert answer.status in (200, 202), answer
    return n


def state(system: System, name: str) -> tuple[str, str]:
    found = system.http("GET", f"/v1/rules/{name}").json
    return found["state"], found["why"]


def await_state(system: System, name: str, wanted: str) -> str:
    system.await_true(lambda: state(system, name)[0] == wanted, f"{name} is {wanted}")
    return state(system, name)[1]


def kill(system: System) -> None:
    """End the server by SIGKILL, and wait until it is gone."""
    server = system.note()[0]
    server.kill()
    system.await_true(lambda: has_ended(server), "the server is gone")


def test_a_dear_rule_holds_nobody_and_stays_paused(stopped: System) -> None:
    system = stopped
    system.up("--workers", "1")
    system.await_connected()
    deploy(system, "dear", rule("dear", when=DEAR), rule("never", when=NEVER))
    deploy(system, "good", rule("good"))
    sent = 0

    def attack() -> None:
        nonlocal sent
        for name in ("dear", "never"):
            system.oncue("rules", "resume", name)
        sent = emit(system, sent + 1, NUMBERS)
        for name in ("dear", "never"):
            await_state(system, name, "paused")
        system.await_tasks(sent, rule="good")

    check_no_stall(system.local["url"], attack, endpoint="local", token=system.local["token"])
    assert "CPU time" in state(system, "never")[1]

    kill(system)
    system.up("--workers", "1")
    system.await_connected()
    assert "CPU time" in await_state(system, "never", "paused")
    emit(system, sent + 1, NUMBERS)
    system.await_tasks(sent + 1, rule="good")
    letters = system.json("dead", "list")
    assert {letter["rule"] for letter in letters} == {"dear", "never"}
    assert all("not tested: the rule is paused" in letter["reason"] for letter in letters)
    assert not system.tasks(rule="never")

    deploy(system, "dear", rule("dear", when="data.n > 0"), rule("never", when="data.n > 0"))
    assert state(system, "never") == ("active", "")
    for letter in letters:
        system.oncue("dead", "retry", str(letter["id"]))
    system.await_tasks(sent + 1, rule="never")
    system.await_tasks(sent + 1, rule="dear")
    assert len(system.tasks(rule="good")) == sent + 1  # no second time


def test_a_server_killed_while_it_tries_a_rule_does_not_try_again(stopped: System) -> None:
    system = stopped
    system.up("--no-endpoint")
    system.write("seen.py", FUNCTION)
    system.oncue("endpoint", "register", "local", code=None)
    deploy(system, "dear", rule("never", when=NEVER))
    mark = system.data / "rules-on-trial.json"

    emit(system, 1, NUMBERS)
    system.await_true(mark.exists, "the rule is being tried", 60)
    kill(system)
    assert json.loads(mark.read_text()).popitem()[1] == "never"
    system.up("--no-endpoint")

    assert "while this rule was being tried" in await_state(system, "never", "paused")
    assert not mark.exists()
    check_no_stall(system.local["url"], lambda: emit(system, 2, NUMBERS))
    system.await_true(lambda: len(system.json("dead", "list")) >= 1, "a dead letter")
    system.oncue("rules", "remove", "dear", "--yes")
    assert system.json("rules", "list") == []


def test_a_start_without_rules_stores_events_for_the_next_one(stopped: System, tmp_path: Path) -> None:
    system = stopped
    system.up("--workers", "1")
    system.await_connected()
    deploy(system, "good", rule("good"))
    deploy(system, "dear", rule("never", when=NEVER))
    system.down()

    system.up("--workers", "1", "--without-rules")
    emit(system, 1)
    listed = system.json("rules", "list")
    assert [(r["name"], r["state"]) for r in listed] == [("dear", "off"), ("good", "off")]
    assert "--without-rules" in listed[0]["why"]
    assert "null" not in system.oncue("rules", "list").stdout
    assert "--without-rules" in system.http("GET", "/health/ready").json["checks"]["rules"]
    assert "--without-rules" in system.oncue("doctor", code=None).stdout
    assert system.http("POST", "/hooks/any", b"{}").status == 503
    system.oncue("rules", "remove", "dear", "--yes")
    deploy(system, "more", rule("more"))
    assert system.tasks() == []
    system.down()

    system.up("--workers", "1")
    system.await_tasks(1, rule="good")
    system.await_tasks(1, rule="more")
    assert {r["name"] for r in system.json("rules", "list")} == {"good", "more"}
    emit(system, 2)
    system.await_tasks(2, rule="good")


@pytest.mark.embedded
def test_an_explanation_of_a_dear_rule_holds_nobody(stopped: System) -> None:
    system = stopped
    system.up("--workers", "1")
    system.await_connected()
    deploy(system, "dear", rule("never", when=NEVER))
    event = {"type": "numbers", "data": {"n": 1, "l": NUMBERS}}
    whys: list[str] = []

    def ask() -> None:
        answer = system.http("POST", "/v1/rules/never/explain", {"event": event})
        whys.append(answer.json.get("why", "") or str(answer.status))

    check_no_stall(system.local["url"], lambda: in_threads(6, ask), endpoint="local", token=system.local["token"])
    assert all("CPU time" in why for why in whys)
    assert state(system, "never") == ("active", "")


@pytest.mark.embedded
def test_an_event_that_thousands_of_rules_match_holds_nobody(stopped: System) -> None:
    system = stopped
    system.up("--workers", "1")
    system.await_connected()
    deploy(system, "many", *(rule(f"r{n}", when="data.l.exists(x, x > 0)") for n in range(3_000)))
    sent = 0

    def attack() -> None:
        nonlocal sent
        sent = emit(system, sent + 1)

        def all_made() -> bool:
            answer = system.http("GET", "/v1/rules")
            return sum(r["fired"] for r in answer.json) >= 3_000 * sent

        system.await_true(all_made, "3,000 tasks", 90)

    check_no_stall(system.local["url"], attack, endpoint="local", token=system.local["token"])


@pytest.fixture
def two(kafka: tuple[str, str], tmp_path: Path) -> Iterator[Many]:
    with many_servers(tmp_path, kafka[0], 2) as found:
        yield found


def test_a_pause_holds_on_all_servers(two: Many) -> None:
    a, b = two.servers
    two.endpoint("local", b)
    deploy(a, "dear", rule("never", when=NEVER), rule("good"))
    emit(b, 1, NUMBERS)
    a.await_tasks(1, rule="good")
    for server in (a, b):
        assert "CPU time" in await_state(server, "never", "paused")

    kill(a)
    kill(b)
    b.up("--no-endpoint")
    assert "CPU time" in await_state(b, "never", "paused")
    b.oncue("rules", "resume", "never")
    assert state(b, "never") == ("active", "")
