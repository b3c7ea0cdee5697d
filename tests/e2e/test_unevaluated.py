"""A condition that cannot be evaluated is counted and shown, with its reason and event."""

from __future__ import annotations

import json
from pathlib import Path

from tests.e2e.running import System, system_in

RULES = """
rules:
  - {name: dose, on: {type: scan.done}, when: data.exposure_s * double(data.frames) > 60.0,
     run: {function: work.py:echo, args: {n: "${data.frames}"}}}
  - {name: many, on: {type: scan.done}, when: "data.frames > 0 && data.tags.all(t, data.tags.all(u, t < u || t >= u))",
     run: {function: work.py:echo, args: {n: "${data.frames}"}}}
  - {name: sound, on: {type: scan.done}, when: has(data.frames), run: {function: work.py:echo, args: {n: 1}}}
"""


def emit(system: System, event_id: str, data: object) -> None:
    event = {"specversion": "1.0", "id": event_id, "source": "/2bm", "type": "scan.done", "data": data}
    answer = system.http(
        "POST", "/v1/events", json.dumps(event).encode(), {"Content-Type": "application/cloudevents+json"}
    )
    assert answer.status in (200, 202), answer


def test_a_condition_that_cannot_be_evaluated_is_counted_and_shown(tmp_path: Path) -> None:
    with system_in(tmp_path, "--workers", "1") as system:
        system.write("work.py", "def echo(n):\n    return n\n")
        system.write("scans.yaml", RULES)
        system.oncue("deploy", "scans.yaml", "--yes")
        emit(system, "whole", {"exposure_s": 1, "frames": 100, "tags": []})  # the manual's example, with integers
        emit(system, "bare", {"frames": "none"})
        emit(system, "bare-2", {"tags": [0] * 3_000})  # tested in another process

        def both() -> bool:
            rules = {r["name"]: r for r in system.json("rules", "list")}
            return rules["dose"]["unevaluated"] == 2 and rules["many"]["unevaluated"] == 2

        system.await_true(both, "both events were tested")
        fired = system.await_tasks(4)
        assert sorted(t["rule"] for t in fired) == ["dose", "many", "sound", "sound"]

        shown = system.json("rules", "show", "dose")
        assert shown["unevaluated_event"] == "bare-2"
        assert shown["unevaluated_source"] == "/2bm"
        assert "exposure_s" in shown["unevaluated_why"]
        assert shown["unevaluated_us"] > 0
        listed = system.oncue("rules", "list").stdout
        assert "for 2 events since start" in " ".join(listed.split())
        assert "event bare-2 of /2bm" in system.oncue("rules", "show", "dose").stdout
        metrics = system.http("GET", "/metrics").body.decode()
        assert 'oncue_rule_unevaluated_total{rule="dose"} 2.0' in metrics
        assert 'oncue_rule_unevaluated_total{rule="many"} 2.0' in metrics
        doctor = system.oncue("doctor", code=1).stdout
        assert "rule dose" in doctor
        assert "has(data.x)" in doctor
        assert "rule sound" not in doctor

        system.write(
            "scans.yaml", RULES.replace("when: data.exposure_s", "when: has(data.exposure_s) && data.exposure_s")
        )
        system.oncue("deploy", "scans.yaml", "--yes")
        emit(system, "bare-3", {"frames": 1})
        system.await_true(
            lambda: system.json("rules", "show", "many")["unevaluated"] == 3, "the third event was tested"
        )
        corrected = system.json("rules", "show", "dose")
        assert corrected["unevaluated_why"] == ""
        assert corrected["unevaluated"] == 2  # the counter of /metrics never falls
