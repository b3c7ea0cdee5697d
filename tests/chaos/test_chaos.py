"""20,000 tasks, and files, under random kill -9: one outcome each.

Server, agent and workers are killed. The pool lives in the agent's process: a killed agent is a
killed pool.
"""

from __future__ import annotations

import collections
import os
import random
import threading
from pathlib import Path

import pytest

from oncue import Client
from oncue.client import Retry
from oncue.errors import Unreachable
from tests.chaos.deployment import Deployment

TASKS = 20_000
FILES = 150
KILLS = {"server": 5, "agent": 6, "worker": 12}  # in any order, after the server right after the deploy
RULES = """\
triggers:
  - {{name: drop, kind: file, path: "{folder}", glob: "*.dat"}}
rules:
  - name: size
    on: drop
    run: {{function: sizes.py:size, endpoint: local, args: {{path: "${{data.path}}"}}}}
    retry: {{max: 100, base: 10ms, cap: 100ms, on: [lost]}}
"""


def double(x: int) -> int:
    import time

    time.sleep(0.0005)
    return 2 * x


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_every_task_and_file_has_one_outcome(tmp_path: Path) -> None:
    seed = int(os.environ.get("ONCUE_CHAOS_SEED", str(random.randrange(10**6))))
    print(f"ONCUE_CHAOS_SEED={seed}")
    rng = random.Random(seed)
    deployment = Deployment(tmp_path)
    deployment.start()
    try:
        local = deployment.await_local()
        incoming = tmp_path / "incoming"
        incoming.mkdir()
        (tmp_path / "sizes.py").write_text("import os\n\ndef size(path):\n    return os.path.getsize(path)\n")
        rules = tmp_path / "rules.yaml"
        rules.write_text(RULES.format(folder=incoming))
        with Client(url=local["url"], token=local["token"]) as client:
            # A client's first requests do not wait for a server that is down; later ones do.
            assert client.submit(double, 21).result(60) == 42
            deployment.run("deploy", str(rules), "--yes")
            _run_tasks_under_kills(client, deployment, incoming, rng)
            _check_files(client, deployment)
            counts = collections.Counter(t.state for t in client.tasks.list(state="closed", limit=TASKS + 10 * FILES))
            assert counts == {"succeeded": TASKS + FILES + 1}, counts
            assert not list(client.tasks.list(state="open", limit=10))
    finally:
        deployment.stop()


def _run_tasks_under_kills(client: Client, deployment: Deployment, incoming: Path, rng: random.Random) -> None:
    stopped = threading.Event()
    kinds = [kind for kind, times in KILLS.items() for _ in range(times)]
    rng.shuffle(kinds)
    kinds.insert(0, "server")
    left = len(kinds)

    def kill() -> None:
        nonlocal left
        for i, kind in enumerate(kinds):
            stopped.wait(rng.uniform(0.2, 1.2) if i else rng.uniform(0.0, 0.1))
            deployment.kill_one(rng, kind)
            left -= 1

    def write() -> None:
        for i in range(FILES):
            path = incoming / f"f{i:04d}.dat"
            with path.open("wb") as file:
                file.write(bytes(i))
            if stopped.wait(0.1):
                continue

    threads = [threading.Thread(target=kill), threading.Thread(target=write)]
    for thread in threads:
        thread.start()
    try:
        fast = client.with_options(retry=Retry(max=100, base=0.01, cap=0.1, on=("lost",)))
        tasks = fast.map(double, range(TASKS))
        assert client.gather(tasks, timeout=400) == [2 * i for i in range(TASKS)]
    finally:
        threads[0].join()
        stopped.set()
        threads[1].join()
    assert left == 0
    while True:  # the last kill may have been the server's
        try:
            client.triggers.list()
            return
        except Unreachable:
            deployment.stopping.wait(0.05)


def _check_files(client: Client, deployment: Deployment) -> None:
    """Check that each file has one task, with the right value."""
    import time

    deadline = time.monotonic() + 120
    while True:
        tasks = list(client.tasks.list(rule="size", limit=10 * FILES))
        if len(tasks) >= FILES and all(t.state == "succeeded" for t in tasks):
            break
        assert time.monotonic() < deadline, collections.Counter(t.state for t in tasks)
        deployment.stopping.wait(0.1)
    sizes = collections.Counter(client.tasks.get(t.id).value for t in tasks)
    assert sizes == collections.Counter(range(FILES))
