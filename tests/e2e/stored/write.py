"""Write the folder of a server of commit 92efd48, and what that commit made of it afterwards. See README.md.

`continue_on` needs only the API, so that the test calls it too: it compares the present code with commit 92efd48.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from tests.e2e.running import System

ROOT = Path("/tmp/oncue-stored")  # rule files, functions and events hold absolute paths
SECRET = "open sesame"
LEFT_OUT = ("ballast", "*-shm", "server.log*", "out", "server.properties", "log4j2.properties")
CLOSED = ("succeeded", "failed", "cancelled", "lost")
WORK = '''import time


def note(name, value=None):
    """Append to the file of runs: a task that runs twice shows."""
    with open("/tmp/oncue-stored/runs", "a") as f:
        f.write(f"{name}\\n")
    return value


def fail(name):
    note(name)
    raise ValueError("no beam")


def wait_for(name, path):
    note(name)
    while True:
        try:
            open(path).close()
            return name
        except FileNotFoundError:
            time.sleep(0.02)


def measure(path):
    note("measure " + path)
    with open(path, "rb") as f:
        return len(f.read())


def stack(paths, size):
    note("stack")
    return [size, paths]
'''
SHOTS = """rules:
  - name: count
    on: {type: shot}
    match: {data.energy: {gt: LEAST}}
    run: {function: work.py:note, endpoint: local, args: {name: "shot ${data.n}", value: "${data.n}"}}
"""
RULES = {
    "off": """rules:
  - {name: resting, on: {type: shot}, run: {function: work.py:note, endpoint: local, args: {name: resting}}}
""",
    "layers": """rules:
  - name: stack
    on: {type: layer}
    dedupe: {key: "${data.path}", ttl: 30d}
    batch: {key: "${data.scan}", count: 3}
    run: {function: work.py:stack, endpoint: local, args: {paths: "${each.data.path}", size: "${count}"}}
  - name: once
    on: {type: sample}
    dedupe: {key: "${data.n}", ttl: 30d}
    run: {function: work.py:note, endpoint: local, args: {name: "once ${data.n}", value: "${data.n}"}}
""",
    "files": """triggers:
  - {name: frames, kind: file, path: incoming, glob: "*.raw"}
rules:
  - {name: measure, on: frames, run: {function: work.py:measure, endpoint: local, args: {path: "${data.path}"}}}
""",
    "hooks": """triggers:
  - {name: door, kind: webhook, verify: {bearer: "${secret:door}"}}
rules:
  - {name: on-door, on: door, run: {function: work.py:note, endpoint: local, args: {name: "door ${id}", value: "${data}"}}}
""",
}


def shot_rules(least: int) -> str:
    return SHOTS.replace("LEAST", str(least))


def post(system: System, path: str, body: Any, **headers: str) -> Any:
    answer = system.http("POST", path, body, headers)
    assert answer.status in (200, 202), answer
    return answer.json


def emit(system: System, kind: str, key: str, **data: Any) -> None:
    post(system, "/v1/events", {"type": kind, "source": "/stored", "id": key, "data": data})


def submit(system: System, key: str, function: str, *args: Any, endpoint: str = "local") -> str:
    body = {"function": function, "args": args, "endpoint": endpoint}
    return str(post(system, "/v1/tasks", body, **{"Idempotency-Key": key})["id"])


def drop(name: str, size: int) -> None:
    """A complete file, with a time in whole seconds, as an archive holds it."""
    part = ROOT / "incoming" / f"{name}.part"
    part.write_bytes(b"x" * size)
    os.utime(part, (1_700_000_000, 1_700_000_000))
    part.rename(ROOT / "incoming" / f"{name}.raw")


def runs() -> list[str]:
    path = ROOT / "runs"
    return sorted(path.read_text().splitlines()) if path.exists() else []


def await_closed(system: System, *ids: str) -> None:
    def closed() -> bool:
        return all(system.http("GET", f"/v1/tasks/{i}").json["state"] in CLOSED for i in ids)

    system.await_true(closed, f"the tasks {ids} are closed")


def rule(system: System, name: str) -> dict[str, Any]:
    return dict(system.http("GET", f"/v1/rules/{name}").json)


def found(system: System) -> dict[str, Any]:
    """All that a user sees and that does not depend on the time or the machine."""
    tasks = []
    for task in system.tasks():
        shown = system.http("GET", f"/v1/tasks/{task['id']}").json
        kept = {k: shown[k] for k in ("state", "function", "rule", "endpoint", "attempt") if k in shown}
        kept["value"] = shown.get("value")
        kept["error"] = (shown.get("error") or {}).get("message", "")
        # These ids follow from a file's inode, and from the time at which a later event was accepted.
        differs = kept["rule"] == "measure" or (kept["rule"] == "once" and kept["value"] == 3)
        tasks.append(["" if differs else task["id"], kept])
    rules = [
        {k: r[k] for k in ("name", "enabled", "version", "waiting", "windows", "suppressed") if k in r}
        for r in system.http("GET", "/v1/rules").json
    ]
    dead = [
        {k: d[k] for k in ("state", "rule", "event", "settled_why") if k in d}
        for d in system.http("GET", "/v1/dead?all=1").json["items"]
    ]
    history = {
        label: [[v["version"], v["note"]] for v in system.http("GET", f"/v1/deployments/{label}").json]
        for label in ("shots", *RULES)
    }
    return {
        "tasks": sorted(tasks, key=str),
        "rules": sorted(rules, key=str),
        "dead": sorted(dead, key=str),
        "history": history,
        "triggers": sorted([t["name"], t["kind"], t["state"]] for t in system.http("GET", "/v1/triggers").json),
        "functions": sorted(f["name"] for f in system.json("functions", "list")),
        "tokens": sorted([t["name"], t["scopes"]] for t in system.json("tokens", "list")),
        "events": len(system.json("events", "list")),
        "runs": runs(),
    }


# ---------------------------------------------------------------- what is stored


def ring(system: System, key: str) -> int:
    headers = {"Idempotency-Key": key, "Content-Type": "application/json", "Authorization": f"Bearer {SECRET}"}
    return system.http("POST", "/hooks/door", json.dumps({"key": key}).encode(), headers, token=None).status


def fill(system: System) -> dict[str, Any]:
    """All but the last moments."""
    system.write("work.py", WORK)
    for name in ("note", "fail", "wait_for"):
        system.oncue("functions", "register", f"work.py:{name}")
    system.write("shots.yaml", shot_rules(0))
    for label, text in RULES.items():
        system.write(f"{label}.yaml", text)
    (ROOT / "incoming").mkdir()
    drop("old", 1)
    system.oncue("deploy", "shots.yaml", *(f"{x}.yaml" for x in RULES), "--yes", "--note", "first")
    system.write("shots.yaml", shot_rules(10))
    system.oncue("deploy", "shots.yaml", "--yes", "--note", "brighter")
    system.oncue("rules", "disable", "resting")
    token = system.json("tokens", "create", "daq", "--scope", "emit")["token"]

    lab = str(ROOT / "lab")
    system.oncue("endpoint", "register", "lab", "--dir", lab, "--workers", "1")
    system.oncue("endpoint", "start", "lab", "--dir", lab, "--detach")
    system.await_connected("lab")
    system.oncue("endpoint", "stop", "lab", "--dir", lab)

    await_closed(system, submit(system, "good", "note", "good", {"n": 7}), submit(system, "bad", "fail", "bad"))
    submit(system, "lab", "note", "lab", "from the lab", endpoint="lab")
    system.oncue("tasks", "cancel", submit(system, "gone", "note", "gone", endpoint="lab"))
    with system.client() as client:
        pickled = client.submit(as_set, [1, 2, 2])
        assert pickled.result(30) == {1, 2}
        waiting = client.with_options(endpoint="lab").submit(as_set, [3, 3])
        client.flush()
        ids = {"pickled": pickled.id, "pickled_waiting": waiting.id}

    drop("fired", 2)
    assert ring(system, "ring-1") == 202
    for n, energy in ((1, 20), (2, 5)):
        emit(system, "shot", f"shot-{n}", n=n, energy=energy)
    for key in ("dark-1", "dark-2"):
        emit(system, "shot", key, energy=30)  # without n: a dead letter
    for n in (1, 2, 1):
        emit(system, "sample", f"sample-{time.monotonic_ns()}", n=n)
    for n in (1, 2, 2):
        emit(system, "layer", f"layer-{time.monotonic_ns()}", scan=7, path=f"/7/{n}")
    for n in (1, 2, 3):
        emit(system, "layer", f"layer-8-{n}", scan=8, path=f"/8/{n}")
    system.await_true(lambda: len(system.tasks(state="closed")) >= 10, "10 closed tasks")
    system.await_true(lambda: len(system.json("dead", "list")) == 2, "the dead letters")
    system.await_true(lambda: rule(system, "stack")["waiting"] == 2, "an open batch")
    system.await_true(lambda: rule(system, "once")["suppressed"] == 1, "a suppressed event")
    (first,) = [d["id"] for d in system.json("dead", "list") if d["event"][1] == "dark-1"]
    system.oncue("dead", "dismiss", str(first), "--reason", "shutter closed")
    return {"token": token, **ids}


def as_set(numbers: list[int]) -> set[int]:
    return set(numbers)


def submit_last(system: System) -> list[str]:
    """Return the ids of a task with an unacknowledged result, of one that is interrupted, and of three in the queue."""
    return [
        submit(system, "unacknowledged", "wait_for", "unacknowledged", str(ROOT / "gate")),
        submit(system, "interrupted", "wait_for", "interrupted", str(ROOT / "never")),
        *(submit(system, f"queued-{n}", "note", f"queued-{n}", n) for n in range(3)),
    ]


def kill(system: System) -> None:
    """Kill the server while a task runs and others wait in the agent's journal; then the agent, with a result that
    the server does not know."""
    first, *_ = submit_last(system)
    system.await_true(lambda: "unacknowledged" in runs(), "the task runs")
    time.sleep(1)  # for the agent's journal; the test would show what was missing
    assert system.http("GET", f"/v1/tasks/{first}").json["state"] not in CLOSED
    processes = system.note()
    processes[0].kill()
    processes[0].wait(10)
    (ROOT / "gate").touch()
    system.await_true(lambda: "interrupted" in runs(), "the next task runs")
    for process in processes[1:]:
        if process.is_running():
            process.send_signal(signal.SIGKILL)
    assert "queued-0" not in runs()


def continue_on(system: System) -> dict[str, Any]:
    """Start a server on what is stored, and use all of it. Return what is visible at first, and at the end."""
    system.up()
    system.await_connected()
    await_closed(system, *submit_last(system))  # a repeated request names the same task
    system.await_true(lambda: ["frames", "file", "running"] in found(system)["triggers"], "the trigger runs")
    first = found(system)
    system.oncue("endpoint", "start", "lab", "--dir", str(ROOT / "lab"), "--detach")
    system.await_true(lambda: len(system.tasks(state="open")) == 0, "the tasks of the endpoint lab are closed")
    emit(system, "layer", "layer-7-1-again", scan=7, path="/7/1")
    emit(system, "layer", "layer-7-3", scan=7, path="/7/3")
    for n in (1, 2, 3):
        emit(system, "sample", f"sample-{n}-again", n=n)
    assert ring(system, "ring-1") == ring(system, "ring-2") == 202
    emit(system, "shot", "shot-1", n=1, energy=20)  # a known event
    emit(system, "shot", "shot-3", n=3, energy=30)
    emit(system, "shot", "shot-4", n=4, energy=5)
    drop("new", 3)
    system.await_true(lambda: len(system.tasks(rule="measure")) == 2, "the new file fires")
    system.await_true(lambda: len(system.tasks(rule="stack")) == 2, "the batch closes")
    system.await_true(lambda: len(system.tasks(rule="once")) == 3, "the new sample")
    system.await_true(lambda: len(system.tasks(rule="count")) == 2, "the new shot")
    system.oncue("rules", "rollback", "shots", "1", "--yes")
    emit(system, "shot", "shot-5", n=5, energy=5)
    system.await_true(lambda: len(system.tasks(rule="count")) == 3, "the rule of the first version")
    system.oncue("rules", "enable", "resting")
    emit(system, "shot", "shot-6", n=6, energy=5)
    system.await_true(lambda: len(system.tasks(rule="resting")) == 1, "the enabled rule")
    (open_letter,) = [d["id"] for d in system.json("dead", "list")]
    system.oncue("dead", "retry", str(open_letter))
    system.await_true(lambda: len(system.http("GET", "/v1/dead?all=1").json["items"]) == 3, "the retried letter's own")
    system.await_true(lambda: len(system.tasks(rule="count")) == 4, "all shots")
    system.await_true(lambda: len(system.tasks(rule="resting")) == 2, "the retried event runs the enabled rule, too")
    system.await_true(lambda: not system.tasks(state="open"), "all tasks are closed")
    system.oncue("endpoint", "stop", "lab", "--dir", str(ROOT / "lab"))
    return {"first": first, "last": found(system)}


def environment(kind: str, address: str) -> dict[str, str]:
    days = {f"ONCUE_{x}_RETENTION_DAYS": "36500" for x in ("RESULTS", "EVENTS", "REPORTS")}
    log = {"ONCUE_LOG": f"kafka://{address}?prefix=old.&session_s=2"} if kind == "kafka" else {}
    return days | log | {"ONCUE_WORKERS": "1", "ONCUE_BRIDGE_PORT": "21879"}


def main(kind: str, out: Path) -> None:
    from tests.kafka.broker import Broker

    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir()
    broker = Broker(ROOT / "broker") if kind == "kafka" else None
    system = System(ROOT, ROOT / "data", **environment(kind, broker.address if broker else ""))
    (ROOT / "data/secrets").mkdir(parents=True, mode=0o700)
    (ROOT / "data/secrets/door").write_text(SECRET)
    try:
        if broker:
            broker.start()
        system.up()
        system.await_connected()
        facts = fill(system)
        kill(system)
        if broker:
            broker.stop()
        copy, stored_s = out / kind, int(time.time())
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
        if broker:
            broker.start()
        facts |= continue_on(system)
    finally:
        system.end()
        if broker:
            broker.kill()
    facts |= {"python": list(sys.version_info[:2]), "stored_s": stored_s}
    (copy / "facts.json").write_text(json.dumps(facts, indent=1))
    with tarfile.open(out / f"{kind}-92efd48.tar.xz", "w:xz") as archive:
        archive.add(copy, ".", filter=without_owner)


def without_owner(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
