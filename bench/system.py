"""Measure the whole system on the embedded log.

`oncue up` runs in processes of its own, the client in this one. The value of each outcome is
checked.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from oncue.client import Client


def noop(x: int) -> int:
    return x


class Running:
    """A server, its local endpoint, and a client."""

    def __init__(self, client: Client, process: subprocess.Popen[bytes], folder: Path, start_s: float) -> None:
        self.client, self.process, self.folder, self.start_s = client, process, folder, start_s

    def processes(self) -> dict[str, psutil.Process]:
        """Return server, agent and workers by name."""
        server = psutil.Process(self.process.pid)
        found = {"server": server}
        for child in server.children(recursive=True):
            words = " ".join(child.cmdline())
            if "oncue.endpoint.worker" in words:
                found[f"worker{sum(n.startswith('worker') for n in found)}"] = child
            elif "oncue.endpoint.run" in words:
                found["agent"] = child
        return found

    def cpu_s(self) -> dict[str, float]:
        spent = {name: sum(p.cpu_times()[:2]) for name, p in self.processes().items()}
        return {"client": time.process_time(), **spent}


@contextlib.contextmanager
def running(workers: int = 2, folder: str | None = None, log_url: str = "") -> Iterator[Running]:
    """Run `oncue up` on free ports and yield once its endpoint is connected.

    Without `folder` it uses a new one. An empty `log_url` is the embedded log.
    """
    with tempfile.TemporaryDirectory(
        dir=folder or os.environ.get("ONCUE_BENCH_DIR", "/var/tmp"), prefix="oncue-bench-"
    ) as made:
        data = Path(made) / "data"
        log = (Path(made) / "log").open("wb")
        began = time.monotonic()
        command = [sys.executable, "-m", "oncue", "up", "--data", str(data), "--port", "0", "--workers", str(workers)]
        process = subprocess.Popen([*command, "--log", log_url] if log_url else command, stdout=log, stderr=log)
        try:
            local = _await(lambda: json.loads((data / "local.json").read_text()), process, 30)
            with Client(url=local["url"], token=local["token"]) as client:
                _await(lambda: next(e for e in client.endpoints.list() if e.state == "connected"), process, 30)
                client.submit(noop, 1).result(30)
                yield Running(client, process, Path(made), time.monotonic() - began)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            log.close()


def _await(probe: Any, process: subprocess.Popen[bytes], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, ValueError, StopIteration):
            return probe()
        time.sleep(0.01)
    raise RuntimeError("oncue up did not start")


def burst(r: Running, tasks: int) -> float:
    """Return tasks a second, from the first call to the last checked outcome."""
    began = time.perf_counter()
    handles = r.client.map(noop, range(tasks))
    values = r.client.gather(handles)
    took = time.perf_counter() - began
    if values != list(range(tasks)):
        raise AssertionError("an outcome had not its right value")
    return tasks / took


def await_view(r: Running) -> None:
    """Wait until the view has all outcomes: no task is open at the local endpoint."""
    while r.client.endpoints.get("local").waiting:
        time.sleep(0.02)


def throughput(r: Running, tasks: int = 20_000, repeats: int = 5) -> dict[str, Any]:
    burst(r, 2_000)
    await_view(r)
    before, began = r.cpu_s(), time.perf_counter()
    rates = [burst(r, tasks) for _ in range(repeats)]
    await_view(r)
    took = time.perf_counter() - began
    after = r.cpu_s()
    per_task = {name: round((after[name] - before.get(name, 0)) * 1e6 / (tasks * repeats), 1) for name in after}
    return {
        "tasks": tasks,
        "burst_per_s": round(statistics.median(rates)),
        "burst_best_per_s": round(max(rates)),
        "view_caught_up_per_s": round(tasks * repeats / took),
        "cpu_us_per_task": per_task,
        "cpu_us_per_task_sum": round(sum(per_task.values()), 1),
    }


def sustained(r: Running, tasks: int = 500_000, at_once: int = 50_000) -> dict[str, Any]:
    """Measure until the view has caught up with all tasks."""
    began = time.perf_counter()
    for _ in range(tasks // at_once):
        burst(r, at_once)
    await_view(r)
    return {"tasks": tasks, "per_s": round(tasks / (time.perf_counter() - began))}


def latency(r: Running, calls: int = 300) -> dict[str, float]:
    """Measure one task at a time, from submit to result, in ms.

    Warm: after a burst, and after as many calls that are not counted.
    """
    burst(r, 2_000)
    await_view(r)
    for i in range(calls):
        r.client.submit(noop, i).result(30)
    took = []
    for i in range(calls):
        began = time.perf_counter()
        if r.client.submit(noop, i).result(30) != i:
            raise AssertionError("an outcome had not its right value")
        took.append((time.perf_counter() - began) * 1e3)
    took.sort()
    return {"p50_ms": round(took[calls // 2], 2), "p99_ms": round(took[calls * 99 // 100], 2)}


RULES = """\
triggers:
  - {{name: bench, kind: file, path: {folder}, glob: "*.dat", ready: {{any: [close_write]}}}}
rules:
  - name: bench
    on: bench
    run: {{function: bench_task.py:touch, endpoint: local, args: {{path: "${{data.path}}"}}}}
"""


def deploy(r: Running, rules: Path) -> None:
    env = {**os.environ, "ONCUE_DATA": str(r.folder / "data")}
    subprocess.run(
        [sys.executable, "-m", "oncue", "deploy", str(rules), "--yes"], env=env, check=True, capture_output=True
    )


def file_latency(r: Running, files: int = 100) -> dict[str, float]:
    """Measure from the close of a file to the start of its function, in ms.

    The times are those of the outcomes.
    """
    watched = r.folder / "watched"
    watched.mkdir()
    (r.folder / "bench_task.py").write_text("def touch(path):\n    return path\n")
    rules = r.folder / "bench.yaml"
    rules.write_text(RULES.format(folder=json.dumps(str(watched))))
    deploy(r, rules)
    _await_trigger(r)
    closed: dict[str, float] = {}
    for i in range(files):
        path = watched / f"f{i:04d}.dat"
        with path.open("wb") as file:
            file.write(b"x" * 100)
            file.flush()
            closed[str(path)] = time.time()
        time.sleep(0.02)
    deadline = time.monotonic() + 30
    infos: list[Any] = []
    while len(infos) < files and time.monotonic() < deadline:
        infos = list(r.client.tasks.list(rule="bench", state="closed", limit=files))
    waits = sorted(t.started_us / 1e3 - closed[t.value] * 1e3 for t in (r.client.tasks.get(i.id) for i in infos))
    if len(waits) != files:
        raise AssertionError(f"{len(waits)} of {files} files had an outcome")
    return {"p50_ms": round(waits[files // 2], 2), "p99_ms": round(waits[files * 99 // 100], 2)}


def _await_trigger(r: Running) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if any(t.state == "running" for t in r.client.triggers.list()):
            return
        time.sleep(0.02)
    raise RuntimeError("the file trigger did not start")


def idle(r: Running, seconds: float = 5.0) -> dict[str, Any]:
    """Return memory (MB) and CPU (% of a core) of each idle process."""
    before = r.cpu_s()
    time.sleep(seconds)
    after = r.cpu_s()
    found = r.processes()
    return {
        name: {
            "rss_mb": round(p.memory_info().rss / 1e6, 1),
            "cpu_percent": round((after[name] - before[name]) / seconds * 100, 2),
        }
        for name, p in found.items()
    }


def singles(r: Running, tasks: int = 20_000) -> dict[str, Any]:
    """Measure as `throughput`, with one `submit` a task.

    A program without a list of tasks calls it like this; the client makes batches.
    """
    submit = r.client.submit
    began = time.perf_counter()
    values = r.client.gather([submit(noop, i) for i in range(tasks)])
    took = time.perf_counter() - began
    if values != list(range(tasks)):
        raise AssertionError("an outcome had not its right value")
    await_view(r)
    return {"tasks": tasks, "per_s": round(tasks / took)}


def run(quick: bool = False, workers: int = 2) -> dict[str, Any]:
    """Run all parts with one server; `quick` takes about half a minute."""
    with running(workers) as r:
        found: dict[str, Any] = {"start_s": round(r.start_s, 2), "idle": idle(r, 2.0 if quick else 10.0)}
        found["latency"] = latency(r, 100 if quick else 300)
        found["file"] = file_latency(r, 30 if quick else 100)
        found["throughput"] = throughput(r, repeats=3 if quick else 7)
        found["singles"] = singles(r, 5_000 if quick else 20_000)
        found["sustained"] = sustained(r, 100_000 if quick else 500_000)
        found["idle_after"] = idle(r, 2.0 if quick else 10.0)
    return found


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
