"""Tasks with affinity keys: real workers, a real agent, real nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oncue.functions import Packed, pack_function
from oncue.ids import new_uuid7
from oncue.protocol.payload import pack_args, unpack
from oncue.protocol.records import OK, TaskRecord
from oncue.protocol.run_options import RunOptions
from tests.integration.node_site import NodeSite
from tests.integration.test_agent import Agents, Bridge, by_id
from tests.pool_rig import Rig, rig_in


def worker(note: str = "", n: int = 0, go: str = "/") -> int:
    """Note that the task has begun; return the worker's pid once the file `go` is there."""
    import os
    import time

    if note:
        with open(note, "a") as f:
            f.write(f"{n}\n")
    while not os.path.exists(go):
        time.sleep(0.01)
    return os.getpid()


def begun(note: Path) -> list[int]:
    return [int(n) for n in note.read_text().split()] if note.exists() else []


# ---------------------------------------------------------------- a pool


def start(rig: Rig, packed: Packed, key: str, *args: Any) -> TaskRecord:
    """Give the pool one task with an affinity key."""
    task = TaskRecord(new_uuid7(), pack_args(args, {}))
    rig.submit(packed, [task], options=RunOptions(affinity=key))
    return task


def pid_of(rig: Rig, task: TaskRecord) -> int:
    ended = rig.end_of(task)
    assert ended.status == OK
    found = unpack(ended.value)
    assert isinstance(found, int)
    return found


def test_each_key_stays_with_its_worker_and_keys_spread(tmp_path: Path) -> None:
    packed = pack_function(worker)
    with rig_in(tmp_path, 3) as rig:
        pids = {key: pid_of(rig, start(rig, packed, key)) for key in "abc"}
        again = [{key: pid_of(rig, start(rig, packed, key)) for key in order} for order in ("cab", "bca", "acb")]
    assert len(set(pids.values())) == 3
    assert again == [pids] * 3


def test_a_task_does_not_wait_for_a_busy_worker(tmp_path: Path) -> None:
    packed, go = pack_function(worker), tmp_path / "go"
    with rig_in(tmp_path / "pool", 2) as rig:
        first = start(rig, packed, "a", str(tmp_path / "note"), 1, str(go))
        rig.wait_for(tmp_path / "note")
        other = pid_of(rig, start(rig, packed, "a"))
        assert rig.ended[-1].id != first.id
        go.touch()
        assert pid_of(rig, first) != other
        assert pid_of(rig, start(rig, packed, "a")) == other, "it had the key last"


def test_a_new_worker_has_had_no_key(tmp_path: Path) -> None:
    packed, crash = pack_function(worker), pack_function(_crash)
    with rig_in(tmp_path, 1) as rig:
        first = pid_of(rig, start(rig, packed, "a"))
        rig.end_of(start(rig, crash, "a"))
        assert not rig.pool.rooms_of("a")
        rig.ready()
        assert pid_of(rig, start(rig, packed, "a")) != first
        assert [room for _, room in rig.pool.rooms_of("a")] != []


def _crash() -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


# ---------------------------------------------------------------- an agent


@pytest.fixture
def bridge(tmp_path: Path) -> Iterator[Bridge]:
    bridge = Bridge(tmp_path)
    packed = pack_function(worker)
    bridge.functions[packed.id] = packed
    yield bridge
    bridge.close()


@pytest.fixture
def agents(tmp_path: Path, bridge: Bridge) -> Iterator[Agents]:
    agents = Agents(tmp_path)
    yield agents
    for process in agents.processes:
        process.kill()
        process.wait()


def test_a_free_worker_takes_the_task_whose_key_it_had(bridge: Bridge, agents: Agents, tmp_path: Path) -> None:
    note, gos = tmp_path / "note", {key: tmp_path / f"go_{key}" for key in "ab"}
    agents.start()
    bridge.until(lambda: bool(bridge.hellos))
    bridge.dispatch("worker", {1: (str(note), 1, str(gos["a"]))}, "a")
    bridge.dispatch("worker", {2: (str(note), 2, str(gos["b"]))}, "b")
    bridge.until(lambda: sorted(begun(note)) == [1, 2])
    bridge.dispatch("worker", {3: (str(note), 3)}, "a")
    bridge.dispatch("worker", {4: (str(note), 4)}, "b")
    bridge.dispatch("double", {5: (21,)})
    bridge.until(lambda: bridge.wants == 2)  # the agent has them all, and asks for the body of `double`

    gos["b"].touch()
    bridge.until(lambda: len(bridge.ended) == 4)

    assert begun(note)[2:] == [4, 3], "the first one is overtaken, and then taken by the free worker"
    pids = {n: unpack(e.value) for n, e in by_id(bridge.ended).items()}
    assert pids[2] == pids[4] == pids[3]
    gos["a"].touch()
    bridge.until(lambda: len(bridge.ended) == 5)
    assert unpack(by_id(bridge.ended)[1].value) != pids[2]


# ---------------------------------------------------------------- nodes


@pytest.fixture
def site(tmp_path: Path) -> Iterator[NodeSite]:
    site = NodeSite(tmp_path)
    packed = pack_function(worker)
    site.bridge.functions[packed.id] = packed
    yield site
    site.close()


def test_each_key_stays_with_its_node_until_the_node_is_gone(site: NodeSite, tmp_path: Path) -> None:
    note, go = tmp_path / "note", tmp_path / "go"
    site.start_agent()
    nodes = {"b1": site.start_node("b1"), "b2": site.start_node("b2")}
    bridge = site.bridge
    bridge.dispatch("worker", {1: (str(note), 1, str(go))}, "a")
    bridge.dispatch("worker", {2: (str(note), 2, str(go))}, "b")
    bridge.until(lambda: sorted(begun(note)) == [1, 2])
    go.touch()
    bridge.until(lambda: len(bridge.ended) == 2)

    for n in range(3, 9):
        bridge.dispatch("worker", {n: ()}, "ab"[n % 2])
        bridge.until(lambda: len(bridge.ended) == n)  # noqa: B023

    pids = {n: unpack(e.value) for n, e in by_id(bridge.ended).items()}
    assert pids[1] != pids[2]
    assert [pids[n] for n in range(3, 9)] == [pids[2], pids[1]] * 3
    nodes["b1"].kill()
    nodes["b1"].wait()
    site.command("end_block b1 NODE_FAIL")
    bridge.until(lambda: any(line.startswith("b1 left") for line in site.changes()))
    bridge.dispatch("worker", {9: ()}, "a")
    bridge.dispatch("worker", {10: ()}, "b")
    bridge.until(lambda: len(bridge.ended) == 10)
    left = {unpack(e.value) for n, e in by_id(bridge.ended).items() if n > 8}
    assert len(left) == 1
    assert left < {pids[1], pids[2]}
