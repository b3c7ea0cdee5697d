"""Measures how long a server's event loop is held while something runs.

    with StallMeter(url) as meter:
        attack()
    meter.check(p99=0.1, worst=0.5)

    check_no_stall(url, attack)  # the same, up to three times before it fails: machines hiccup

A process of its own asks /health/live every 20 ms over one kept connection, so that the test's own work does not
count. The same process asks a second server in the same way, one that does nothing else ("control"): what the control
waited in the meantime is the machine's doing and is taken off. A request that takes long stands for all those that were
due meanwhile (Gil Tene's "coordinated omission"), so a stall of 2 s is 100 slow requests, not one. A third process
works for 5 ms ten times a second: on a machine with other work that takes it longer ("slowdown"), as it does the
server, whose limits grow by that factor.

`endpoint` and `token`: the meter also asks four times a second how that endpoint is, and `check` fails if it was ever not
connected or had to connect anew.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

INTERVAL_S = 0.02
BEAT_S = 0.25
WORK_S, WORK_EVERY_S = 0.005, 0.1
TIMEOUT_S = 60.0  # of one request: a loop that is held longer has failed anyway
P99_S, WORST_S = 0.1, 0.5
TRIES = 3  # machines hiccup

Sample = tuple[float, float]  # asked at, answered after


class Figures(NamedTuple):
    p50: float
    p99: float
    worst: float
    samples: int
    noise: float  # the longest that the control waited
    slowdown: float = 1.0  # how many times longer work takes than on an idle machine

    def __str__(self) -> str:
        shown = ", ".join(
            f"{n} {1000 * v:.0f} ms" for n, v in (("p50", self.p50), ("p99", self.p99), ("worst", self.worst))
        )
        beside = f"the idle control: worst {1000 * self.noise:.0f} ms, slowdown {self.slowdown:.1f}"
        return f"{shown} of {self.samples} ({beside})"


class StallMeter:
    """Asks the server's health in a process of its own, between `__enter__` and `__exit__`."""

    def __init__(self, url: str, *, endpoint: str = "", token: str = "") -> None:
        self._given = {"url": url, "endpoint": endpoint, "token": token}
        self._process: subprocess.Popen[str] | None = None
        self.figures: Figures | None = None
        self.failures: list[str] = []  # requests that were not answered with 200
        self.beats: list[str] = []  # states of the endpoint

    def __enter__(self) -> StallMeter:
        self._process = process = _child("probe", json.dumps(self._given))
        assert process.stdout is not None
        ready = process.stdout.readline()  # the first answers are in
        assert ready.strip() == "ready", ready
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process is not None
        out, _ = self._process.communicate("", timeout=2 * TIMEOUT_S + 10)
        found = json.loads(out)
        self.figures = figures(found["server"], found["control"])._replace(slowdown=found["slowdown"])
        self.failures, self.beats = found["failures"], found["beats"]

    def problem(self, p99: float = P99_S, worst: float = WORST_S) -> str:
        """Return what does not hold, or an empty text."""
        assert self.figures is not None, "the meter has not ended"
        if self.failures:
            return f"{len(self.failures)} health requests failed, first: {self.failures[0]}"
        slower = self.figures.slowdown
        if self.figures.p99 > p99 * slower or self.figures.worst > worst * slower:
            return f"held: {self.figures}; at most p99 {1000 * p99:.0f} ms, worst {1000 * worst:.0f} ms"
        if len(set(self.beats)) > 1 or any(not beat.startswith("connected") for beat in self.beats):
            return f"the endpoint did not stay connected: {sorted(set(self.beats))}"
        return ""

    def check(self, p99: float = P99_S, worst: float = WORST_S) -> Figures:
        problem = self.problem(p99, worst)
        assert not problem, problem
        assert self.figures is not None
        return self.figures


def check_no_stall(
    url: str,
    attack: Callable[[], object],
    *,
    p99: float = P99_S,
    worst: float = WORST_S,
    endpoint: str = "",
    token: str = "",
) -> Figures:
    """Run the attack under a meter. Fails if the server was held each time."""
    problems = []
    for _ in range(TRIES):
        with StallMeter(url, endpoint=endpoint, token=token) as meter:
            attack()
        problem = meter.problem(p99, worst)
        if not problem:
            return meter.check(p99, worst)
        problems.append(problem)
    raise AssertionError("\n".join(problems))


# ---------------------------------------------------------------- figures


def figures(server: list[Sample], control: list[Sample]) -> Figures:
    """Return the server's latencies less the control's, with those that a long one kept from being asked."""
    found = []
    for at, took in server:
        left = max(0.0, took - _overlap(at, at + took, control))
        while left > 0 or not found:
            found.append(left)
            left -= INTERVAL_S
    found.sort()
    noise = max((took for _, took in control), default=0.0)
    if not found:
        return Figures(0.0, 0.0, 0.0, 0, noise)
    return Figures(found[len(found) // 2], found[math.ceil(0.99 * len(found)) - 1], found[-1], len(found), noise)


def _overlap(begin: float, end: float, control: list[Sample]) -> float:
    """Return how much of this time the control waited, which waits for nothing but the machine."""
    return sum(max(0.0, min(end, at + took) - max(begin, at)) for at, took in control)


# ---------------------------------------------------------------- the processes


def _child(role: str, given: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-I", str(Path(__file__)), role, given],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


class _Asker:
    """Asks for one path again and again, over one connection as long as that is kept."""

    def __init__(self, url: str, path: str, token: str = "") -> None:
        parts = urlsplit(url)
        self.host, self.port, self.path = parts.hostname or "", parts.port or 80, path
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.connection: http.client.HTTPConnection | None = None

    def ask(self) -> tuple[int, bytes]:
        for again in (True, False):
            kept = self.connection is not None
            if self.connection is None:
                self.connection = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT_S)
            try:
                self.connection.request("GET", self.path, headers=self.headers)
                answer = self.connection.getresponse()
                body = answer.read()
                if answer.will_close:
                    self.close()
                return answer.status, body
            except (http.client.HTTPException, OSError):
                self.close()
                if not (kept and again):  # a kept connection may have been closed meanwhile
                    raise
        raise AssertionError("unreachable")

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def _ask_on(asker: _Asker, stop: threading.Event, samples: list[Sample], failures: list[str]) -> None:
    due = time.perf_counter()
    while not stop.is_set():
        at = time.perf_counter()
        problem = ""
        try:
            status, _ = asker.ask()
            if status != 200:
                problem = f"answered {status}"
        except (http.client.HTTPException, OSError) as e:
            problem = f"{type(e).__name__}: {e}"
        samples.append((at, time.perf_counter() - at))
        if problem:
            failures.append(problem)
        due = max(due + INTERVAL_S, time.perf_counter())
        stop.wait(due - time.perf_counter())


def _beat_on(asker: _Asker, stop: threading.Event, beats: list[str]) -> None:
    while not stop.is_set():
        try:
            status, body = asker.ask()
            found = json.loads(body) if status == 200 else {}
            beats.append(f"{found.get('state', status)} since {found.get('since_us', 0)}")
        except (http.client.HTTPException, OSError) as e:
            beats.append(f"{type(e).__name__}: {e}")
        stop.wait(BEAT_S)


def probe(given: dict[str, str]) -> None:
    """Ask until the standard input ends, then print what was found."""
    control, worker = _child("control"), _child("work")
    assert control.stdout is not None
    own = f"http://127.0.0.1:{int(control.stdout.readline())}"
    stop = threading.Event()
    found: dict[str, Any] = {"server": [], "control": [], "failures": [], "beats": []}
    path = "/health/live"
    threads = [
        threading.Thread(target=_ask_on, args=(_Asker(own, path), stop, found["control"], [])),
        threading.Thread(target=_ask_on, args=(_Asker(given["url"], path), stop, found["server"], found["failures"])),
    ]
    if given["endpoint"]:
        asker = _Asker(given["url"], f"/v1/endpoints/{given['endpoint']}", given["token"])
        threads.append(threading.Thread(target=_beat_on, args=(asker, stop, found["beats"])))
    for thread in threads:
        thread.start()
    while not (found["server"] and found["control"]):
        time.sleep(0.001)
    print("ready", flush=True)
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    control.communicate("")
    found["slowdown"] = float(worker.communicate("")[0])
    print(json.dumps(found), flush=True)


def control() -> None:
    """Answer each request at once, until the standard input ends."""
    threading.Thread(target=lambda: os._exit(len(sys.stdin.read())), daemon=True).start()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            peer, _ = listener.accept()
            with peer, contextlib.suppress(OSError):
                while peer.recv(65_536):
                    peer.sendall(answer)


def work() -> None:
    """Work for 5 ms ten times a second until the standard input ends, then print how much longer that took."""
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    busy = took = 0.0
    while not (ended.is_set() and busy):
        began, spent = time.perf_counter(), time.thread_time()
        while time.thread_time() - spent < WORK_S:
            pass
        busy, took = busy + time.thread_time() - spent, took + time.perf_counter() - began
        ended.wait(WORK_EVERY_S)
    print(max(1.0, took / busy))


if __name__ == "__main__":
    if sys.argv[1] == "control":
        control()
    elif sys.argv[1] == "work":
        work()
    else:
        probe(json.loads(sys.argv[2]))
