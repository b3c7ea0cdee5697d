"""Stand-in of kubectl and a cluster: runs Jobs for real, and answers with Kubernetes' objects.

The state is a folder, $STAND_IN, with a file for each Job. No pod is run in a container.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HOME = Path(os.environ.get("STAND_IN", "/nonexistent"))


def create() -> int:
    items = {item["kind"]: item for item in json.load(sys.stdin)["items"]}
    job, secret = items["Job"], items["Secret"]
    name = job["metadata"]["name"]
    if "nowhere" in job["spec"]["template"]["spec"]["containers"][0]["image"]:
        sys.stderr.write("Error from server (Forbidden): jobs.batch is forbidden: exceeded quota: small\n")
        return 1
    file = HOME / "jobs" / name
    if file.exists():
        sys.stderr.write(f'Error from server (AlreadyExists): jobs.batch "{name}" already exists\n')
        return 1
    (HOME / "secrets" / name).write_text(json.dumps(secret["stringData"]))
    file.write_text(json.dumps({"state": "Pending", "pid": 0, "job": job}))
    run = [sys.executable, "-S", "-E", __file__, "run", name]
    nothing = subprocess.DEVNULL
    subprocess.Popen(run, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True)
    sys.stdout.write(f"secret/{name}\njob.batch/{name}\n")
    return 0


def run(name: str) -> None:
    file = HOME / "jobs" / name
    state = json.loads(file.read_text())
    container = state["job"]["spec"]["template"]["spec"]["containers"][0]
    variables = os.environ | json.loads((HOME / "secrets" / name).read_text())
    with (HOME / "logs" / name).open("wb") as log:
        process = subprocess.Popen(container["command"], env=variables, stdout=log, stderr=log, process_group=0)
    store(file, state | {"state": "Running", "pid": process.pid})
    code = process.wait()
    if file.exists():
        store(file, state | {"state": "Failed" if code else "Complete", "code": 128 - code if code < 0 else code})


def store(file: Path, state: dict[str, Any]) -> None:
    new = HOME / f"new.{os.getpid()}"
    new.write_text(json.dumps(state))
    if file.exists():
        new.rename(file)


def get(arguments: list[str]) -> int:
    if arguments[1] == "job":
        name = arguments[2]
        sys.stdout.write(f"job.batch/{name}\n" if (HOME / "jobs" / name).exists() else "")
        return 0
    items: list[dict[str, Any]] = []
    for file in sorted((HOME / "jobs").iterdir()):
        state = json.loads(file.read_text())
        items += objects(file.name, state)
    json.dump({"apiVersion": "v1", "kind": "List", "items": items}, sys.stdout)
    return 0


def objects(name: str, state: dict[str, Any]) -> list[dict[str, Any]]:
    word = state["state"]
    labels = state["job"]["metadata"]["labels"]
    job: dict[str, Any] = {"kind": "Job", "metadata": {"name": name, "labels": labels}, "status": {}}
    pod: dict[str, Any] = {"kind": "Pod", "metadata": {"name": f"{name}-x7k2p", "labels": labels}, "spec": {}}
    if word == "Pending":
        message = "0/1 nodes are available: 1 Insufficient cpu."
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        pod["status"] = {"phase": "Pending", "conditions": [condition]}
        return [job, pod]
    pod["spec"] = {"nodeName": "node01"}
    pod["status"] = {"phase": "Running", "containerStatuses": [{"name": "pool", "state": {"running": {}}}]}
    if word != "Running":
        ended = {"exitCode": state["code"], "reason": "Error" if state["code"] else "Completed"}
        pod["status"] = {"phase": word, "containerStatuses": [{"name": "pool", "state": {"terminated": ended}}]}
        failed = {"reason": "BackoffLimitExceeded", "message": "Job has reached the specified backoff limit"}
        job["status"]["conditions"] = [{"type": word, "status": "True", **(failed if word == "Failed" else {})}]
    return [job, pod]


def delete(arguments: list[str]) -> int:
    kinds = arguments[1].split(",")
    for name in arguments[2:]:
        if name.startswith("--"):
            continue
        if "secrets" in kinds:
            (HOME / "secrets" / name).unlink(missing_ok=True)
        file = HOME / "jobs" / name
        if "jobs" in kinds and file.exists():
            pid = json.loads(file.read_text())["pid"]
            file.unlink()
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
    return 0


def main(arguments: list[str]) -> int:
    if arguments[0] == "run":
        time.sleep(0.1)  # the scheduler's
        run(arguments[1])
        return 0
    if arguments[0] == "logs":
        sys.stdout.write((HOME / "logs" / arguments[1].partition("/")[2]).read_text())
        return 0
    return {"create": lambda: create(), "get": lambda: get(arguments), "delete": lambda: delete(arguments)}[
        arguments[0]
    ]()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
