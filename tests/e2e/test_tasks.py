"""Tasks on the command line: submit, show, cancel, retry; output and exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.running import PATIENCE_S, System, system_in

SOURCE = '''
import os
import pathlib
import sys
import time


def greet(name="you", times=1):
    """Say hello."""
    print("greeting", name)
    return [f"hello {name}"] * times


def kinds(**given):
    return {name: [type(value).__name__, value] for name, value in given.items()}


def flaky(path, until):
    """Fails until it has been called so many times."""
    with open(path, "a") as f:
        f.write("x")
    count = len(pathlib.Path(path).read_text())
    if count < until:
        raise RuntimeError(f"call {count}")
    return count


def slow(path):
    pathlib.Path(path).write_text(str(os.getpid()))
    print("waiting for", path, flush=True)
    while not pathlib.Path(path + ".go").exists():
        time.sleep(0.01)
    print("goes on")
    return "done"


def nothing():
    pass


def grumble(then="fail", path=""):
    print("on stdout")
    print("on stderr", file=sys.stderr, flush=True)
    os.write(1, b"by its descriptor\\n")
    if then == "fail":
        raise ValueError("enough")
    if then == "die":
        os._exit(3)
    time.sleep(600)
'''


@pytest.fixture(scope="module")
def system(shared: System) -> System:
    shared.write("calls.py", SOURCE)
    return shared


def awaited(path: Path, system: System) -> None:
    system.await_true(path.exists, f"{path} is there")


def ended(system: System, task: str) -> dict[str, Any]:
    def closed() -> dict[str, Any] | None:
        found: dict[str, Any] = system.http("GET", f"/v1/tasks/{task}").json
        return found if found["ended_us"] else None

    found = system.await_true(closed, f"{task} has ended")
    assert found is not None
    return found


# ---------------------------------------------------------------- invoke


def test_arguments_and_names(system: System) -> None:
    assert system.oncue("invoke", "calls.py:greet").stdout == '["hello you"]\n'
    by_name = system.oncue("invoke", "greet", "--arg", "name=A=B", "--arg", "times:=2")
    assert by_name.stdout == '["hello A=B","hello A=B"]\n'
    assert by_name.stderr == "greeting A=B\n"
    (known,) = [f for f in system.json("functions", "list") if f["name"] == "greet"]
    assert (known["version"], known["doc"], known["signature"]) == (1, "Say hello.", "(name='you', times=1)")
    for name in ("greet@1", known["id"]):
        assert system.oncue("invoke", name, "--arg", "name=x").stdout == '["hello x"]\n'
    given = ["t=7", "i:=7", "f:=1.5", "n:=null", "b:=true", 'l:=[1, {"a": "ä"}]', "empty=", "endpoint=x"]
    found = json.loads(system.oncue("invoke", "calls.py:kinds", *(w for g in given for w in ("--arg", g))).stdout)
    assert found == {
        "t": ["str", "7"],
        "i": ["int", 7],
        "f": ["float", 1.5],
        "n": ["NoneType", None],
        "b": ["bool", True],
        "l": ["list", [1, {"a": "ä"}]],
        "empty": ["str", ""],
        "endpoint": ["str", "x"],  # the function's own, though a call's option has that name
    }
    assert system.oncue("invoke", "calls.py:nothing").stdout == ""


def test_output_timeline_and_json_of_a_task(system: System) -> None:
    found = system.json("invoke", "calls.py:greet", "--arg", "name=Z")
    assert (found["state"], found["value"], found["output"]) == ("succeeded", ["hello Z"], "greeting Z\n")
    assert system.oncue("tasks", "logs", found["id"]).stdout == "greeting Z\n"
    shown = system.json("tasks", "show", found["id"])
    whats = [e["what"] for e in shown["timeline"]]
    assert whats[0] == "accepted"
    assert whats[-1] == "ended"
    times = [e["at_us"] for e in shown["timeline"]]
    assert times == sorted(times)
    human = system.oncue("tasks", "show", found["id"]).stdout
    assert "hello Z" in human
    assert "accepted" in human


def test_live_logs_of_a_running_task_and_cancel(system: System, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    task = system.oncue("invoke", "calls.py:slow", "--arg", f"path={flag}", "--no-wait").stdout.strip()
    awaited(flag, system)
    follow = system.start("tasks", "logs", "-f", task)
    assert follow.stdout is not None
    first = follow.stdout.readline()  # while it runs
    assert first == f"waiting for {flag}\n"
    assert system.http("GET", f"/v1/tasks/{task}").json["state"] == "running"
    (tmp_path / "flag.go").touch()
    rest, err = follow.communicate(timeout=PATIENCE_S)
    assert (rest, err, follow.returncode) == ("goes on\n", "", 0)
    assert ended(system, task)["output"] == f"waiting for {flag}\ngoes on\n"


def test_cancel_running_and_retry_by_hand(system: System, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    task = system.oncue("invoke", "calls.py:slow", "--arg", f"path={flag}", "--no-wait").stdout.strip()
    awaited(flag, system)
    refused = system.oncue("tasks", "retry", task, code=1).stderr
    assert "→" in refused
    assert system.json("tasks", "cancel", task)["asked"] == [task]
    assert ended(system, task)["state"] == "cancelled"
    (tmp_path / "flag.go").touch()
    again = system.oncue("tasks", "retry", task).stdout.strip()
    assert again != task
    found = ended(system, again)
    assert (found["state"], found["value"], found["retry_of"]) == ("succeeded", "done", task)
    system.oncue("tasks", "cancel", "0" * 32, code=4)


def test_a_failure_has_exit_code_1_and_a_short_traceback(system: System) -> None:
    found = system.oncue("invoke", "calls.py:flaky", "--arg", "path=/dev/null", "--arg", "until:=2", code=1)
    assert "call 0" in found.stderr
    assert "RuntimeError" in found.stderr
    assert 'calls.py", line' in found.stderr
    assert found.stdout == ""
    as_json = system.json("invoke", "calls.py:flaky", "--arg", "path=/dev/null", "--arg", "until:=2", code=1)
    assert (as_json["state"], as_json["error"]["type"]) == ("failed", "RuntimeError")


@pytest.mark.parametrize(("then", "words"), [("fail", "ValueError: enough"), ("wait", "0.5 s"), ("die", "exited")])
def test_output_printed_before_a_failure_is_shown(system: System, then: str, words: str) -> None:
    call = ("invoke", "calls.py:grumble", "--arg", f"then={then}", "--timeout", "500ms" if then == "wait" else "60s")
    found = system.oncue(*call, code=1)
    printed, _, error = found.stderr.partition("error: ")
    assert printed == "on stdout\non stderr\nby its descriptor\n"
    assert words in error
    assert found.stdout == ""
    as_json = system.oncue(*call, "--json", code=1)
    assert json.loads(as_json.stdout)["output"] == printed
    assert "on stdout" not in as_json.stderr


# ---------------------------------------------------------------- policies


def request(function: str, kwargs: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {"function": function, "endpoint": "local", "kwargs": kwargs} | options


def test_retries_run_until_success_or_their_limit(system: System, tmp_path: Path) -> None:
    system.oncue("functions", "register", "calls.py:flaky")
    retry = {"max": 3, "backoff": "constant", "base_ms": 10, "on": ["error"]}
    good, bad = tmp_path / "good", tmp_path / "bad"
    one = system.http("POST", "/v1/tasks", request("flaky", {"path": str(good), "until": 3}, retry=retry)).json
    two = system.http("POST", "/v1/tasks", request("flaky", {"path": str(bad), "until": 99}, retry=retry)).json
    found = ended(system, one["id"])
    assert (found["state"], found["value"], found["attempt"], good.read_text()) == ("succeeded", 3, 3, "xxx")
    assert [a["status"] for a in found["attempts"]] == ["error", "error", "ok"]
    found = ended(system, two["id"])
    assert (found["state"], found["attempt"], bad.read_text()) == ("failed", 4, "xxxx")
    assert found["error"]["message"] == "call 4"


BEAM = """
class NoBeam(OSError):
    pass


class Dumped(NoBeam):
    pass


def measure(path):
    with open(path, "a") as f:
        f.write("x")
        calls = f.tell()
    raise NoBeam("wait") if calls == 1 else Dumped("gone")
"""


def test_retries_by_class_say_why(system: System, tmp_path: Path) -> None:
    system.write("beam.py", BEAM)
    path = tmp_path / "calls"
    given = ["--arg", f"path={path}", "--retries", "9", "--retry-on", "OSError", "--retry-never", "beam.Dumped"]

    task = system.json("invoke", "beam.py:measure", *given, "--retry-max-age", "1h", code=1)

    details = [e["detail"] for e in system.json("tasks", "show", task["id"])["timeline"] if e["what"] == "ended"]
    assert path.read_text() == "xx"
    assert details == [
        "attempt 1: error: beam.NoBeam: wait; retried: OSError is in on",
        "attempt 2: error: beam.Dumped: gone; not retried: beam.Dumped is in never",
    ]


def test_a_timeline_says_where_a_task_runs(system: System, tmp_path: Path) -> None:
    path = tmp_path / "running"
    task = system.json("invoke", "calls.py:slow", "--arg", f"path={path}", "--no-wait")["id"]

    def started() -> str:
        entries = system.json("tasks", "show", task)["timeline"]
        return "".join(e["detail"] for e in entries if e["what"] == "started" and " at " in e["detail"])

    where = system.await_true(started, "the worker is reported")
    pid = path.read_text()
    Path(f"{path}.go").touch()

    assert f"(pid {pid})" in where
    shown = system.await_true(
        lambda: (found := system.json("tasks", "show", task))["task"]["state"] == "succeeded" and found, "it has ended"
    )
    assert where in [e["detail"] for e in shown["timeline"]]


def test_timeout(system: System, tmp_path: Path) -> None:
    found = system.oncue("invoke", "calls.py:slow", "--arg", f"path={tmp_path / 'never'}", "--timeout", "300ms", code=1)
    assert "0.3 s" in found.stderr
    assert "→" in found.stderr
    assert system.oncue("invoke", "calls.py:greet").stdout  # this worker, or another, runs the next task


def test_the_same_key_is_the_same_task(system: System, tmp_path: Path) -> None:
    system.oncue("functions", "register", "calls.py:flaky")
    path = tmp_path / "count"
    body = request("flaky", {"path": str(path), "until": 1})
    answers = [system.http("POST", "/v1/tasks", body, {"Idempotency-Key": "once"}) for _ in range(3)]
    assert {a.status for a in answers} <= {200, 202}
    assert len({a.json["id"] for a in answers}) == 1
    other = system.http("POST", "/v1/tasks", body, {"Idempotency-Key": "twice"}).json
    assert other["id"] != answers[0].json["id"]
    assert ended(system, answers[0].json["id"])["state"] == "succeeded"
    accepted = {a.json["accepted_us"] for a in (*answers, system.http("GET", f"/v1/tasks/{answers[0].json['id']}"))}
    assert len(accepted) == 1
    assert ended(system, other["id"])["state"] == "succeeded"
    key = "0192f0c1e5a07c3e8a1b2c3d4e5f0000"
    batch = {"function": "flaky", "key": key, "calls": [[[str(path), 1], {}], [[str(path), 1], {}]]}
    firsts = {system.http("POST", "/v1/tasks/batch", batch).json["first"] for _ in range(3)}
    (first,) = firsts
    last = f"{int(first, 16) + 1:032x}"
    for task in (first, last):
        assert ended(system, task)["state"] == "succeeded"
    marker = tmp_path / "marker"  # tasks of one endpoint are sent in order: had there been more, they would have run
    done = system.http("POST", "/v1/tasks", request("flaky", {"path": str(marker), "until": 1})).json
    ended(system, done["id"])
    system.await_true(lambda: all(t["name"] != "flaky" for t in system.tasks(state="open")), "all have ended")
    assert path.read_text() == "xxxx"  # once, twice, and two of the batch


def test_a_repeated_request_gets_the_outcome_and_a_different_one_is_refused(system: System) -> None:
    system.oncue("functions", "register", "calls.py:greet")
    first = system.http(
        "POST", "/v1/tasks", request("greet", {"name": "a"}, wait_ms=20_000), {"Idempotency-Key": "ask"}
    )
    assert first.json["value"] == ["hello a"], first
    for _ in range(2):
        again = system.http(
            "POST", "/v1/tasks", request("greet", {"name": "a"}, wait_ms=20_000), {"Idempotency-Key": "ask"}
        )
        assert (again.json["id"], again.json["state"], again.json["value"]) == (
            first.json["id"],
            "succeeded",
            ["hello a"],
        )
    other = system.http("POST", "/v1/tasks", request("greet", {"name": "b"}), {"Idempotency-Key": "ask"})
    assert (other.status, "another key" in other.body.decode() or "new key" in other.body.decode()) == (409, True)
    batch = {"function": "greet", "key": "0192f0c1e5a07c3e8a1b2c3d4e5f0001", "calls": [[["x"], {}], [["y"], {}]]}
    assert system.http("POST", "/v1/tasks/batch", batch).status == 202
    batch["calls"] = [[["x"], {}], [["z"], {}]]
    assert system.http("POST", "/v1/tasks/batch", batch).status == 409


def test_the_live_stream_shows_a_task_from_its_acceptance_on(system: System, tmp_path: Path) -> None:
    system.oncue("functions", "register", "calls.py:slow")
    with system.client() as client:
        feed = client.live("task", "outcome")
        next(feed)  # it listens
        task = system.http("POST", "/v1/tasks", request("slow", {"path": str(tmp_path / "begun")})).json["id"]
        awaited(tmp_path / "begun", system)
        seen: list[str] = []
        for kind, item in feed:
            if item is None or item.get("id") != task:
                continue
            seen.append(item["state"] if kind == "task" else "outcome")
            if item["state"] == "running":  # reported after a second
                system.oncue("tasks", "cancel", task)
            if kind == "outcome":
                break
    assert seen == ["waiting", "running", "outcome"]


# ---------------------------------------------------------------- an endpoint that is not there


@pytest.fixture(scope="module")
def lonely(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """An endpoint whose agent the test starts and stops."""
    with system_in(tmp_path_factory.mktemp("lonely"), "--no-endpoint") as found:
        found.write("calls.py", SOURCE)
        found.oncue("endpoint", "register", "polaris", "--workers", "1")
        yield found
        found.oncue("endpoint", "stop", "polaris", code=4)  # the test has stopped it


def test_tasks_wait_expire_and_are_cancelled_while_the_endpoint_is_offline(lonely: System, tmp_path: Path) -> None:
    def invoke(*words: str) -> str:
        return lonely.oncue("invoke", *words, "--endpoint", "polaris", "--no-wait").stdout.strip()

    flag = tmp_path / "flag"
    expires = invoke("calls.py:slow", "--arg", f"path={tmp_path / 'expired'}", "--expires", "1s")
    cancelled = invoke("calls.py:slow", "--arg", f"path={tmp_path / 'cancelled'}")
    waits = invoke("calls.py:slow", "--arg", f"path={flag}")
    found = lonely.http("GET", f"/v1/tasks/{waits}").json
    assert found["state"] == "waiting"
    assert "polaris" in found["why"]
    (tmp_path / "flag.go").touch()
    lonely.oncue("tasks", "cancel", cancelled)
    assert ended(lonely, cancelled)["state"] == "cancelled"
    assert ended(lonely, expires)["state"] == "expired"
    assert "did not start" in lonely.oncue("tasks", "show", expires).stdout
    lonely.oncue("endpoint", "start", "polaris", "--detach")
    try:
        assert ended(lonely, waits)["value"] == "done"
        assert not (tmp_path / "expired").exists()
        assert not (tmp_path / "cancelled").exists()
        again = lonely.oncue("endpoint", "start", "polaris", "--detach", code=1)
        assert "runs already" in again.stderr
        pid = lonely.json("endpoint", "status", "polaris")["pid"]
    finally:
        lonely.oncue("endpoint", "stop", "polaris")
    assert lonely.json("endpoint", "status", "polaris")["running"] is False
    lonely.await_true(lambda: not Path(f"/proc/{pid}").exists(), "the agent has ended, and init has seen it")
    lonely.await_true(
        lambda: lonely.http("GET", "/v1/endpoints/polaris").json["state"] == "away", "the server has noticed"
    )


def test_invoke_says_why_it_waits(lonely: System, tmp_path: Path) -> None:
    waiting = lonely.start("invoke", "calls.py:slow", "--endpoint", "polaris", "--arg", f"path={tmp_path / 'flag'}")
    assert waiting.stderr is not None
    away = waiting.stderr.readline()
    since = lonely.http("GET", "/v1/endpoints/polaris").json["since_us"]  # 0: it has never come
    assert away.startswith(f"waiting: endpoint 'polaris' is away{' since ' if since else ', it has not come yet'}")
    assert away.endswith("oncue endpoint start polaris\n")
    lonely.oncue("endpoint", "start", "polaris", "--detach")
    try:
        assert "endpoint 'polaris'" in (now := waiting.stderr.readline()) or now == "it runs\n"
        assert "away" not in now
        (tmp_path / "flag.go").touch()
        out, _ = waiting.communicate(timeout=PATIENCE_S)
        assert (out, waiting.returncode) == ("done\n", 0)
    finally:
        lonely.oncue("endpoint", "stop", "polaris")


def test_ctrl_c_leaves_the_task_alone(system: System, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    waiting = system.start("invoke", "calls.py:slow", "--arg", f"path={flag}")
    awaited(flag, system)
    (task,) = system.await_true(  # it may run before the list has it
        lambda: [t["id"] for t in system.tasks(state="open") if t["name"] == "slow"], "the call is in the list"
    )
    waiting.send_signal(signal.SIGINT)
    _, err = waiting.communicate(timeout=PATIENCE_S)
    assert waiting.returncode == 130
    assert "Traceback" not in err
    (tmp_path / "flag.go").touch()
    assert ended(system, task)["value"] == "done"


def test_tail_shows_tasks_as_they_happen(system: System) -> None:
    tail = system.start("tasks", "tail", "--json")
    try:
        assert tail.stdout is not None
        seen: list[dict[str, Any]] = []
        enough = threading.Event()

        def read() -> None:
            assert tail.stdout is not None
            for line in tail.stdout:
                seen.append(json.loads(line))
                enough.set()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        ids: list[str] = []

        def shown() -> bool:  # earlier tasks are not shown
            ids.append(system.json("invoke", "calls.py:greet")["id"])
            return enough.wait(1)

        system.await_true(shown, "tail shows a task")
        assert any(i in json.dumps(seen) for i in ids)
    finally:
        tail.send_signal(signal.SIGINT)
        assert tail.wait(PATIENCE_S) in (0, 130)
        reader.join(PATIENCE_S)
        for pipe in (tail.stdout, tail.stderr):
            if pipe is not None:
                pipe.close()


# ---------------------------------------------------------------- a server that is not there

LAST_WORDS = """
from oncue import Client


def double(x):
    return 2 * x


client = Client(linger=0.5)
print(client.submit(double, 1).result(60), flush=True)
input()
print(client.submit(double, 2).id, flush=True)
"""


def test_a_script_whose_server_is_gone_exits_with_an_error(stopped: System) -> None:
    stopped.up("--workers", "1")
    program = subprocess.Popen(
        [sys.executable, str(stopped.write("last.py", LAST_WORDS))],
        env=stopped.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "2\n"
    stopped.down()
    out, err = program.communicate("\n", timeout=PATIENCE_S)
    assert program.returncode == 120, err
    assert "1 submitted task was not accepted" in err
    assert out.strip() in err
    assert "oncue up" in err
    assert "Traceback" not in err
    stopped.up("--workers", "1")
    stopped.oncue("tasks", "show", out.strip(), code=4)  # the remedy's command: the task was not accepted
