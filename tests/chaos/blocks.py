"""An endpoint on a real Slurm, under load, with a fault every few seconds.

    python -m tests.chaos.blocks --runs 20 --minutes 1

    load    batches of tasks with idempotency keys, each sent until the server accepts it
    faults  kill -9 of agent, node's process, slurmd with its steps, slurmctld, server; jobs
            cancelled under us; sbatch that hangs, refuses, or whose answer is lost; squeue that
            babbles. Sometimes two at once
    check   after an orderly end, each accepted task has one outcome with the right value, no block
            has had two jobs, and `stop` leaves no job and no process of a node

`--seed` repeats the choices, not the moments. Exits 1 if a check fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import secrets
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil

from oncue.functions import pack_function
from tests.chaos.soak import Load
from tests.e2e.running import System, system_in
from tests.slurm.cluster import Cluster

YAML = """\
provider: {kind: slurm, partition: debug, exclusive: false, cores_per_node: 2, command_timeout: 3s}
blocks: {max: 3, nodes: 1, walltime: 10m, idle: 2s}
workers: {per_node: 2}
network: {address: 127.0.0.1}
limits: {submits: 1000/min, failed_blocks: 1000, pending_blocks: 3}
"""
PAUSE_S = 0.5  # between two batches
END_S = 300.0  # until all tasks have ended, once no fault is left
NODE = "oncue.endpoint.node"


def work(x: int) -> int:
    """Double a number; now and then for longer."""
    import time

    time.sleep(1.5 if x % 25 == 0 else 0.002)
    return 2 * x


class Site:
    """Server, agent and cluster."""

    def __init__(self, system: System, slurm: Cluster) -> None:
        self.system, self.slurm = system, slurm
        self.folder = system.folder / "hpc"
        self._place = ("hpc", "--dir", str(self.folder))
        self._former = slurm.jobs().keys()
        self.stops = 0  # that could not be sure that no job is left
        system.oncue("endpoint", "register", *self._place)
        (self.folder / "endpoint.yaml").write_text(YAML)

    def start_agent(self) -> None:
        """Start the agent; succeed only if the server is there."""
        self.system.oncue("endpoint", "start", *self._place, "--detach", code=None)

    def kill_agent(self) -> None:
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            agent = psutil.Process(int((self.folder / "lock").read_text()))
            if str(self.folder) in agent.cmdline():
                agent.kill()
                agent.wait(30)

    def stop_agent(self) -> None:
        """Stop; obey the remedy where a submission was not answered, and its job may still appear."""
        done = self.system.oncue("endpoint", "stop", *self._place, code=None)
        if done.returncode:
            assert "start the endpoint: it takes them over" in done.stderr, done
            self.stops += 1
            self.system.oncue("endpoint", "start", *self._place, "--detach")
            live = ("asked", "pending", "running", "draining")
            status = self.folder / "status.json"
            blocks = lambda: [b for b in json.loads(status.read_text())["blocks"] if b["state"] in live]  # noqa: E731
            self.system.await_true(lambda: not blocks(), "it ends them", END_S)
            self.system.oncue("endpoint", "stop", *self._place)

    def jobs(self) -> set[str]:
        """Return all jobs since the start."""
        return self.slurm.jobs().keys() - self._former

    def node_processes(self) -> list[psutil.Process]:
        """Return the processes of nodes, not those of their jobs' scripts."""
        found = []
        for pid in {pid for name in self.slurm.nodes for pid in self.slurm.node_processes(name)}:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                if NODE in process.cmdline():
                    found.append(process)
        return found


class Faults:
    """Faults of one site; each is undone by its own method, within seconds."""

    QUICK = ("kill_agent", "kill_node_process", "cancel_job", "sbatch_fails", "kill_controller", "kill_server")
    ALL = (*QUICK, "kill_agent", "kill_node_process", "cancel_job", "kill_node", "restart_controller", "squeue_babbles")

    def __init__(self, site: Site, rng: random.Random, names: tuple[str, ...] = ALL) -> None:
        self.site, self.rng, self._names = site, rng, names
        self.done: Counter[str] = Counter()
        self.failed: list[str] = []
        self._controller = threading.Lock()

    def inject(self) -> None:
        """Inject one fault, sometimes two at once, and undo it."""
        chosen = {self.rng.choice(self._names) for _ in range(self.rng.choice((1, 1, 2)))}
        threads = [threading.Thread(target=self._run, args=(n, self.rng.random()), name=n) for n in sorted(chosen)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not self.failed, self.failed

    def _run(self, name: str, seed: float) -> None:
        self.done[name] += 1
        try:
            getattr(self, name)(random.Random(seed))
        except Exception:
            self.failed.append(f"{name}: {traceback.format_exc()}")

    def kill_agent(self, rng: random.Random) -> None:
        self.site.kill_agent()
        _wait(rng, 0.0, 3.0)
        self.site.start_agent()

    def kill_node_process(self, rng: random.Random) -> None:
        if found := self.site.node_processes():
            with contextlib.suppress(psutil.Error):
                rng.choice(found).kill()

    def kill_node(self, rng: random.Random) -> None:
        name = rng.choice(self.site.slurm.nodes)
        self.site.slurm.kill_node(name)
        _wait(rng, 0.0, 12.0)
        self.site.slurm.boot_node(name)

    def kill_controller(self, rng: random.Random) -> None:
        with self._controller:
            self.site.slurm.kill_controller()
            _wait(rng, 0.0, 4.0)
            self.site.slurm.start_controller()

    def restart_controller(self, rng: random.Random) -> None:
        with self._controller:
            self.site.slurm.stop_controller()
            _wait(rng, 0.0, 8.0)
            self.site.slurm.start_controller()

    def cancel_job(self, rng: random.Random) -> None:
        with contextlib.suppress(AssertionError):  # slurmctld is away, or the job has just ended
            if jobs := sorted(self.site.slurm.active_jobs()):
                self.site.slurm.cancel(rng.choice(jobs))

    def sbatch_fails(self, rng: random.Random) -> None:
        faults = self.site.slurm.faults
        refusing = faults.refusing(
            "sbatch", "sbatch: error: Batch job submission failed: Job violates accounting policy"
        )
        with rng.choice((faults.hanging("sbatch"), faults.answer_lost("sbatch"), refusing)):
            _wait(rng, 1.0, 5.0)

    def squeue_babbles(self, rng: random.Random) -> None:
        text = rng.choice(("", "segfault\n", "7|RUNNING|", "slurm_load_jobs error: Socket timed out\n", "\0\xff|||\n"))
        with self.site.slurm.faults.babbling("squeue", text):
            _wait(rng, 1.0, 6.0)

    def kill_server(self, rng: random.Random) -> None:
        self.site.system.server.kill()
        _wait(rng, 0.0, 3.0)
        self.site.system.up("--no-endpoint")


def _wait(rng: random.Random, least: float, most: float) -> None:
    time.sleep(rng.uniform(least, most))


@contextlib.contextmanager
def chaos_site(folder: Path, slurm: Cluster) -> Iterator[Site]:
    """Yield a site whose nodes have their temporary files in `folder`."""
    scratch = folder / "scratch"
    scratch.mkdir()
    with system_in(folder, "--no-endpoint", TMPDIR=str(scratch), **slurm_variables(slurm)) as system:
        site = Site(system, slurm)
        try:
            yield site
        finally:
            site.kill_agent()


def slurm_variables(slurm: Cluster) -> dict[str, str]:
    return {name: slurm.environ[name] for name in ("SLURM_CONF", "PATH")}


def run_chaos(
    site: Site, faults: Faults, rng: random.Random, *, seconds: float = 0.0, count: int = 0
) -> dict[str, int]:
    """Inject `count` faults, or faults for `seconds`; check what must hold. Return counts.

    Raises AssertionError if a check fails.
    """
    with site.system.client() as client:
        function = client.register(pack_function(work))
    site.start_agent()
    load = Load([site.system], function, "hpc", random.Random(rng.random()), PAUSE_S)
    load.start()
    end = time.monotonic() + seconds
    try:
        while faults.done.total() < count or time.monotonic() < end:
            time.sleep(rng.uniform(0.2, 2.0))
            faults.inject()
    finally:
        load.over.set()
        load.join(180)
    assert not load.is_alive(), "the server accepts no tasks"
    _end_well(site)
    jobs = _check(site, load.expected)
    return {"tasks": len(load.expected), "jobs": jobs, "unsure stops": site.stops, **faults.done}


def _end_well(site: Site) -> None:
    """Wait until all tasks have ended, as a user would: with a `reset` after the faults."""
    site.start_agent()
    site.system.await_connected("hpc")
    (site.folder / "reset-blocks").touch()
    site.system.await_true(
        lambda: not site.system.http("GET", "/v1/tasks?state=open&limit=1").json["items"], "all tasks end", END_S, 0.3
    )


def _check(site: Site, expected: dict[str, int]) -> int:
    tasks = site.system.tasks()
    states = Counter(str(t["state"]) for t in tasks)
    assert states == {"succeeded": len(expected)}, (states, [t for t in tasks if t["state"] != "succeeded"][:3])
    assert {t["id"]: t["value"] for t in tasks} == expected, "each accepted task has its value, and there is no other"
    marks = Counter(site.slurm.run("squeue", "-h", "-t", "all", "-o", "%j").split())
    assert not [mark for mark, n in marks.items() if mark.startswith("oncue-") and n > 1], marks
    site.stop_agent()
    assert not site.slurm.active_jobs(), "a job is left"
    site.system.await_true(lambda: not site.node_processes(), "no process of a node is left")
    return len(site.jobs())


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.chaos.blocks", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="of faults in each run")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument(
        "--seed", type=int, default=secrets.randbelow(10**6), help="of the first run; each has the next"
    )
    given = parser.parse_args()
    failures = 0
    for seed in range(given.seed, given.seed + given.runs):
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="oncue-blocks-", ignore_cleanup_errors=True) as name:
            slurm = Cluster(Path(name) / "slurm", remember_s=3_600)
            rng = random.Random(seed)
            try:
                with chaos_site(Path(name), slurm.start()) as site:
                    found = run_chaos(site, Faults(site, rng), rng, seconds=given.minutes * 60)
                words = ", ".join(f"{what} {count:,}" for what, count in found.items())
            except AssertionError as e:
                failures += 1
                words = f"FAILED: {e}"
                _keep(Path(name), seed)
            finally:
                slurm.stop()
        print(f"seed {seed}, {time.monotonic() - began:.0f} s: {words}", flush=True)
    print(f"{given.runs - failures} of {given.runs} runs held")
    return 1 if failures else 0


def _keep(folder: Path, seed: int) -> None:
    """Keep the logs of a run that failed."""
    kept = Path(tempfile.gettempdir()) / f"oncue-blocks-failed-{seed}"
    kept.mkdir(exist_ok=True)
    for file in (folder / "hpc" / "agent.log", folder / "data" / "server.log", folder / "slurm" / "slurmctld.log"):
        if file.exists():
            (kept / file.name).write_bytes(file.read_bytes())
    print(f"its logs are in {kept}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
