"""Pages of log.db or view.db that are damaged under a stopped server: told, never a wrong answer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.e2e.conftest import System
from tests.e2e.running import PATIENCE_S

pytestmark = pytest.mark.embedded
PAGE = 4096


def square(x: int) -> int:
    return x * x


def filled(system: System) -> dict[str, object]:
    """Run tasks and send events; return the tasks by id, and stop."""
    system.up("--workers", "1")
    with system.client() as client:
        assert [t.result(PATIENCE_S) for t in client.map(square, range(300))] == [n * n for n in range(300)]
        for n in range(50):
            body = {"type": "a", "source": "/b", "id": str(n), "data": {"n": n, "fill": "x" * 500}}
            assert system.http("POST", "/v1/events", body).status == 202
    found = answers(system)
    system.down()
    return found


def answers(system: System) -> dict[str, object]:
    tasks = {t["id"]: (t["state"], t["function"], t["value"]) for t in system.tasks()}
    events = system.http("GET", "/v1/events?limit=100").json["items"]
    return tasks | {f"event {e['event']['id']}": e["event"]["data"] for e in events}


def damage(path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with path.open("r+b") as file:
        # The first page is the schema: without it nothing can be read.
        file.seek(chance.randrange(1, path.stat().st_size // PAGE) * PAGE)
        file.write(chance.randbytes(PAGE))


@pytest.mark.parametrize("view", ["kept", "removed"])
def test_a_server_on_a_damaged_log_answers_rightly_or_tells(stopped: System, view: str) -> None:
    system = stopped
    before = filled(system)
    original = (system.data / "log" / "log.db").read_bytes()
    pages = len(original) // PAGE
    written = [n for n in range(1, pages) if b"x" * 100 in original[n * PAGE : (n + 1) * PAGE]]  # events
    chance = random.Random(5)
    with (system.data / "log" / "log.db").open("r+b") as file:
        for page in chance.sample(written, 3):
            file.seek(page * PAGE)
            file.write(chance.randbytes(PAGE))
    if view == "removed":
        (system.data / "view.db").unlink()
    said = system.oncue("doctor", code=1).stdout
    assert "WRONG stored log" in said
    system.up("--workers", "1")
    after = answers(system)
    assert {key: value for key, value in after.items() if before.get(key) != value} == {}, "a wrong answer"
    dead = system.json("dead", "list")
    if after != before:
        assert dead or (system.data / "log" / "damage.json").exists()
    assert "damage.json" in system.oncue("doctor", code=1).stdout
    with system.client() as client:
        assert client.submit(square, 7).result(PATIENCE_S) == 49


def test_a_damaged_view_is_built_again(stopped: System) -> None:
    system = stopped
    before = filled(system)
    path = system.data / "view.db"
    for seed in range(40):
        damage(path, seed)
    for _ in range(3):  # damage may be found at the start, or by the first question
        system.up("--workers", "1")
        statuses = [system.http("GET", f"/v1/{what}?limit=1000").status for what in ("tasks", "events")]
        if statuses == [200, 200] and answers(system) == before:
            break
        system.down()
    assert answers(system) == before
    with system.client() as client:
        assert client.submit(square, 7).result(PATIENCE_S) == 49


@pytest.mark.parametrize("pages", ["all", "but the first two"])
def test_damaged_states_of_rules_are_told(stopped: System, pages: str) -> None:
    system = stopped
    system.up("--no-endpoint")
    system.oncue("endpoint", "register", "local")
    system.write("stack.py", "def stack(n):\n    return n\n")
    run = 'run: {function: "stack.py:stack", args: {n: "${each.data.n}"}}'
    system.write("r.yaml", f"rules:\n  - {{name: stack, on: {{type: a}}, batch: {{count: 3, wait: 1h}}, {run}}}\n")
    system.oncue("deploy", "r.yaml", "--yes")
    system.oncue("events", "emit", "--type", "a", "--source", "/a", "--data", '{"n": 1}')
    system.await_true(lambda: system.json("rules", "show", "stack")["windows"] == 1, "a window is open")
    system.down()
    path = system.data / "windows.db"
    kept = path.read_bytes()[: 2 * PAGE] if pages == "but the first two" else b""  # header, and table `part`
    path.write_bytes(kept + random.Random(3).randbytes(12 * PAGE)[len(kept) :])
    system.up("--no-endpoint")

    def told() -> bool:
        return "damaged" in system.http("GET", "/health/ready").json["checks"]["rules with memory"]

    system.await_true(told, "health says that the states are damaged")
    assert "move the file away" in system.oncue("doctor", code=1).stdout
    assert "damaged" in system.json("rules", "show", "stack")["why"]
    assert "damaged" in system.oncue("status").stdout
    assert "Traceback" not in (system.data / "server.log").read_text()
