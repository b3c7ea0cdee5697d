"""A server and an agent as processes that restart whenever they die."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil


class Deployment:
    """`oncue up --no-endpoint` and `oncue.endpoint.run`, restarted by threads."""

    def __init__(self, folder: Path, workers: int = 2) -> None:
        self.data, self.agent_dir, self.workers = folder / "data", folder / "agent", workers
        self.environ = {**os.environ, "ONCUE_DATA": str(self.data)}
        self.log = (folder / "deployment.log").open("ab")
        self.stopping = threading.Event()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.starts = {"server": 0, "agent": 0}
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        self._keep_running(
            "server", [sys.executable, "-m", "oncue", "up", "--data", str(self.data), "--port", "0", "--no-endpoint"]
        )
        self.await_local()
        self.run("endpoint", "register", "local", "--dir", str(self.agent_dir), "--workers", str(self.workers))
        self._keep_running("agent", [sys.executable, "-m", "oncue.endpoint.run", "--dir", str(self.agent_dir)])

    def run(self, *args: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "oncue", *args],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"oncue {' '.join(args)}: {done.stdout}{done.stderr}"
        return done.stdout

    def await_local(self) -> dict[str, str]:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                return dict(json.loads((self.data / "local.json").read_text()))
            except (OSError, ValueError):
                self.stopping.wait(0.02)
        raise AssertionError("the server did not start")

    def _keep_running(self, name: str, command: list[str]) -> None:
        def restart() -> None:
            while not self.stopping.is_set():
                process = subprocess.Popen(command, env=self.environ, stdout=self.log, stderr=self.log)
                self.processes[name] = process
                self.starts[name] += 1
                process.wait()
                self.stopping.wait(0.05)

        thread = threading.Thread(target=restart, name=f"restart {name}", daemon=True)
        thread.start()
        self._threads.append(thread)

    def victims(self) -> dict[str, list[psutil.Process]]:
        """Return the processes that can be killed now, by kind."""
        found: dict[str, list[psutil.Process]] = {"server": [], "agent": [], "worker": []}
        for name in ("server", "agent"):
            process = self.processes.get(name)
            if process is not None and process.poll() is None:
                found[name] = [psutil.Process(process.pid)]
        for agent in found["agent"]:
            with contextlib.suppress(psutil.NoSuchProcess):
                found["worker"] = agent.children(recursive=True)
        return found

    def kill_one(self, rng: random.Random, kind: str) -> None:
        """Send kill -9 to a process of this kind, as soon as one exists."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(psutil.NoSuchProcess):
                victims = self.victims()[kind]
                if victims:
                    rng.choice(victims).kill()
                    return
            time.sleep(0.01)
        raise AssertionError(f"there was no {kind} to kill")

    def stop(self) -> None:
        self.stopping.set()
        for name in ("agent", "server"):
            process = self.processes.get(name)
            if process is not None and process.poll() is None:
                process.terminate()
        for thread in self._threads:
            thread.join(30)
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()
        self.log.close()
