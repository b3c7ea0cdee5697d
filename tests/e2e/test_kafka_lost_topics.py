"""Topics of Kafka that somebody deletes and makes anew under a running system.

It accepts nothing more until it is started again, and then runs all that it has accepted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.running import Answer, StreamWorker, System, on_kafka, system_in
from tests.kafka.anew import delete, make_anew

WORK = """
def one(n):
    return n


def pair(n):
    return sorted(n)
"""
RULES = """
rules:
  - name: each
    on: {type: single}
    run: {function: work.py:one, args: {n: "${data.n}"}}
  - name: pairs
    on: {type: half}
    batch: {key: "${data.of}", count: 2, wait: 1h}
    run: {function: work.py:pair, args: {n: "${each.data.n}"}}
"""
BEFORE = 6  # events of each kind before the topic is made anew
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def system(kafka: tuple[str, str], tmp_path: Path) -> Iterator[System]:
    data = tmp_path / "data"
    with system_in(tmp_path, "--workers", "1", data=data, ONCUE_LOG=on_kafka(kafka[0], data)) as found:
        found.await_connected()
        begin(found)
        yield found


def begin(system: System) -> None:
    """Deploy the rules, and let them run for some events."""
    system.write("work.py", WORK)
    system.write("rules.yaml", RULES)
    system.oncue("deploy", "--yes", "rules.yaml")
    for n in range(BEFORE):
        assert emit(system, "single", n).status == 202
        assert emit(system, "half", n).status == 202
    system.await_tasks(BEFORE, rule="each")
    system.await_tasks(BEFORE // 2, rule="pairs")


def restart(system: System) -> None:
    """Restart the system; its agent connects again."""
    system.down()
    system.up("--workers", "1")
    system.await_connected()


def emit(system: System, kind: str, n: int) -> Answer:
    return system.http("POST", "/v1/events", {"source": "/lost", "type": kind, "data": {"n": n, "of": n // 2}})


def full(system: System, topic: str) -> tuple[str, str]:
    """Return (broker's address, the topic's full name). "tasks": those of the local endpoint."""
    if topic == "tasks":
        topic = f"tasks.{system.http('GET', '/v1/endpoints/local').json['id']}"
    address, _, options = system.env["ONCUE_LOG"].removeprefix("kafka://").partition("?")
    return address, f"{options.partition('prefix=')[2].partition('&')[0]}oncue.{topic}"


def accept_until_refused(system: System) -> list[int]:
    """Emit as fast as possible; return what was accepted."""
    accepted: list[int] = []

    def refused() -> Answer | None:
        answer = emit(system, "single", 100 + len(accepted))
        if answer.status != 202:
            return answer
        accepted.append(100 + len(accepted))
        return None

    answer = system.await_true(refused, "events are refused", every_s=0.0)
    assert (answer.status, answer.json["code"]) == (503, "not-ready"), answer
    assert "deleted and made anew" in answer.json["detail"]
    assert "oncue up" in answer.json["remedy"]
    return accepted


@pytest.mark.parametrize("topics", ["events", "tasks", "registry", "results control files windows reports dead"])
def test_what_was_accepted_around_it_runs_after_a_restart(system: System, topics: str) -> None:
    names = [full(system, topic)[1] for topic in topics.split()]
    broker = full(system, "events")[0]
    if "control" in topics:
        restart(system)  # the agent then knows a later claim than the first of the new topic
    done = {task["id"] for task in system.tasks(rule="each")}
    for name in names:
        asyncio.run(make_anew(broker, name))

    accepted = accept_until_refused(system)

    health = system.http("GET", "/health/ready").json
    assert health["status"] == "degraded"
    assert any(name in health["checks"]["log"] for name in names), health
    findings = system.json("doctor", code=1)
    assert any(name in f["found"] for f in findings for name in names), findings
    restart(system)
    assert system.http("GET", "/health/ready").json["status"] == "ok"
    if topics == "registry":  # the rules are gone with it: deployed again, they meet the events that wait
        system.oncue("deploy", "--yes", "rules.yaml")
        assert emit(system, "single", 1).status == 202
        system.await_true(lambda: system.tasks(rule="each", state="closed"), "the rule runs")
        return

    def all_ran() -> bool:
        found = system.tasks(rule="each", state="succeeded")
        return len({t["id"] for t in found} - done) == len(accepted)

    system.await_true(all_ran, f"the tasks of {len(accepted)} accepted events")


def test_events_for_stateful_rules_wait_until_the_states_begin_anew(system: System) -> None:
    """States are of one `oncue.matches`: those of another would take new matches for old ones."""
    broker, name = full(system, "matches")
    asyncio.run(make_anew(broker, name))
    for n in range(100, 100 + 4 * BEFORE):  # more than the states have seen of the old one
        if emit(system, "half", n).status != 202:
            break
    accept_until_refused(system)
    system.down()
    system.up("--workers", "1")

    def told() -> bool:
        return (
            "delete the topic oncue.windows" in system.http("GET", "/health/ready").json["checks"]["rules with memory"]
        )

    system.await_true(told, "the remedy is told")
    system.down()
    asyncio.run(delete(*full(system, "windows")))
    system.up("--workers", "1")
    system.await_connected()
    pairs = (n - 100) // 2  # at least: that many were complete
    system.await_true(lambda: len(system.tasks(rule="pairs", state="succeeded")) >= BEFORE // 2 + pairs, "all pairs")


def test_a_stream_worker_ends_with_the_reason(streamed: System, start_worker: Callable[..., StreamWorker]) -> None:
    """A supervisor starts it again."""
    worker = start_worker(streamed)
    begin(streamed)
    broker, name = full(streamed, "matches")

    asyncio.run(make_anew(broker, name))

    _, err = worker.process.communicate(timeout=60)
    assert worker.process.returncode == 1, err
    assert f"the topic {name} was deleted and made anew" in err
    assert "start servers and stream workers again" in err
    assert "Traceback" not in err
