"""Affinity as users state it: rules, client, API, commands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oncue.errors import Invalid
from tests.e2e.running import System, system_in

SOURCE = """
import os

_models = {}


def classify(sample):
    if sample not in _models:
        _models[sample] = len(_models)
    return [os.getpid(), list(_models)]


def where():
    return os.getpid()
"""
RULES = """
rules:
  - name: classify
    on: {type: scan}
    run: {function: beam.py:classify, affinity: "${data.sample}", args: {sample: "${data.sample}"}}
  - name: collect
    on: {type: part}
    affinity: "set ${key}"
    batch: {key: "${data.set}", count: 2}
    run: {function: beam.py:classify, args: {sample: "${key}"}}
"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("affinity")
    with system_in(folder, "--workers", "3") as found:
        found.write("beam.py", SOURCE)
        found.write("beam.yaml", RULES)
        found.oncue("rules", "test", "beam.yaml")
        found.oncue("deploy", "beam.yaml", "--yes")
        yield found


def events(system: System, kind: str, data: dict[str, Any], count: int, rule: str) -> None:
    """Send an event, and wait until the rule has made `count` tasks in all, and they have ended."""
    with system.client() as client:
        client.emit(type=kind, source="/s", data=data)
    system.await_tasks(count, rule=rule)


def test_events_of_a_sample_go_to_the_worker_that_has_its_model(system: System) -> None:
    samples = ["a", "b", "c", "b", "a", "c", "c", "a", "b"]
    for n, sample in enumerate(samples, 1):
        events(system, "scan", {"sample": sample}, n, "classify")

    with system.client() as client:
        tasks = [client.tasks.get(t["id"]) for t in system.await_tasks(len(samples), rule="classify")]
    assert {t.affinity for t in tasks} == {"a", "b", "c"}
    assert len({(t.affinity, t.value[0]) for t in tasks}) == 3, "a worker each"
    assert all(t.value[1] == [t.affinity] for t in tasks), "each worker has loaded one model"


def test_a_window_goes_to_the_worker_that_had_its_key(system: System) -> None:
    count = 0
    for name in ("x", "y", "x", "y"):
        count += 1
        with system.client() as client:
            client.emit(type="part", source="/s", data={"set": name})
        events(system, "part", {"set": name}, count, "collect")
    with system.client() as client:
        tasks = [client.tasks.get(t["id"]) for t in system.await_tasks(count, rule="collect")]
    assert sorted(t.affinity for t in tasks) == ["set x", "set x", "set y", "set y"]
    assert len({(t.affinity, t.value[0]) for t in tasks}) == 2


def test_calls_state_a_key_by_client_command_and_api(system: System, tmp_path: Path) -> None:
    beam = str(system.folder / "beam.py")
    with system.client() as client:
        for wrong in ("x" * 201, 7):
            with pytest.raises(Invalid, match="affinity"):
                client.with_options(affinity=wrong)
    first = system.json("invoke", f"{beam}:where", "--affinity", "bench")
    again = system.json("invoke", f"{beam}:where", "--affinity", "bench")
    body = {"function": first["function"], "affinity": "bench", "wait_ms": 60_000}
    answer = system.http("POST", "/v1/tasks", body)
    batch = {"function": first["function"], "affinity": "bench", "calls": [[[], {}]]}
    accepted = system.http("POST", "/v1/tasks/batch", batch)
    with system.client() as client:
        bound = client.with_options(affinity="bench").call(first["function"], (), {}).result(timeout=60)
        batched = client.task(accepted.json["first"]).result(timeout=60)

    assert {first["value"], again["value"], answer.json["value"], bound, batched} == {first["value"]}
    assert answer.json["affinity"] == "bench"
    assert "affinity" in system.oncue("tasks", "show", first["id"]).stdout
    retried = system.json("tasks", "retry", first["id"])
    assert retried
    for wrong_body in (body | {"affinity": "x" * 201}, body | {"affinity": 7}):
        refused = system.http("POST", "/v1/tasks", wrong_body)
        assert refused.status in (400, 422)


def test_an_event_without_the_field_is_a_dead_letter_that_names_it(system: System) -> None:
    system.write(
        "odd.yaml",
        "rules:\n  - {name: odd, on: {type: odd}, affinity: '${data.sample}', run: {function: beam.py:where}}\n",
    )
    system.oncue("deploy", "odd.yaml", "--yes")
    with system.client() as client:
        client.emit(type="odd", source="/s", data={"other": 1})
    letters = system.await_true(lambda: system.json("dead", "list"), "a dead letter")
    assert "affinity: the event has no data.sample" in json.dumps(letters)
