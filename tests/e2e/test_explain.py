"""`oncue rules explain` of past events: what happened, and what would now."""

from __future__ import annotations

from typing import Any

from tests.e2e.running import System

RULES = """
rules:
  - {name: seen-once, on: {type: seen}, dedupe: {key: "${data.n}", ttl: 1h}, run: {function: seen.py:seen, args: {n: 1}}}
  - {name: seen, on: {type: seen}, match: {data.n: {ge: 3}}, run: {function: seen.py:seen, args: {n: "${data.n}"}}}
"""


def test_an_event_that_fired_an_earlier_version_of_the_rule(shared: System) -> None:
    shared.write("seen.py", "def seen(n):\n    return n\n")
    shared.write("seen.yaml", RULES)
    shared.oncue("deploy", "seen.yaml", "--yes")

    def emit(event_id: str, n: int) -> str:
        shared.json(
            "events", "emit", "--type", "seen", "--source", "/seen", "--id", event_id, "--data", f'{{"n": {n}}}'
        )
        answer = shared.http("GET", "/v1/events?source=/seen").json["items"]
        return str(next(e["offset"] for e in answer if e["event"]["id"] == event_id))

    three, two = emit("three", 3), emit("two", 2)
    (task,) = shared.await_tasks(1, rule="seen")
    once = {t["event"][1]: t for t in shared.await_tasks(2, rule="seen-once")}

    def explained(rule: str, offset: str) -> Any:
        return shared.json("rules", "explain", rule, offset)

    assert "fired for this event" not in shared.oncue("rules", "explain", "seen", two).stdout
    assert not explained("seen", two).get("fired")
    found = explained("seen", three)
    assert (found["fires"], found["fired"][0]["task"], found["fired"][0]["version"]) == (True, task["id"], 1)
    assert found["fired"][0]["at_us"] == task["accepted_us"]

    # The first event's key is stored: sent again, the event is a duplicate.
    said = shared.oncue("rules", "explain", "seen-once", three).stdout
    assert "seen-once fired for this event at 20" in said
    assert f"task {once['three']['id']}, by version 1 of its file" in said
    assert "as it is now, seen-once does not fire: dedupe" in said

    shared.write("seen.yaml", RULES.replace("ge: 3", "ge: 4"))
    shared.oncue("deploy", "seen.yaml", "--yes")
    said = shared.oncue("rules", "explain", "seen", three).stdout
    assert f"task {task['id']}, by version 1 of its file" in said
    assert "as it is now, seen does not fire: data.n >= 4" in said
    shared.oncue("rules", "remove", "seen", "--yes")
