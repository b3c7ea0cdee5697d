"""Real node processes with a real agent on loopback."""

from __future__ import annotations

import hashlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

from oncue import curve
from oncue.endpoint.nodes.addresses import read_addresses
from oncue.endpoint.nodes.launch import ADDRESS_FILE
from oncue.endpoint.nodes.node_folder import cleanup_command
from oncue.endpoint.providers.job_files import JobFiles
from oncue.endpoint.providers.job_script import LaunchOptions, write_script
from oncue.endpoint.providers.jobs import JobRequest
from oncue.functions import pack_function
from oncue.protocol import bridge as wire
from oncue.protocol.codec import decode
from oncue.protocol.payload import REF, Ref, pack_args, pack_ref, ref_of, unpack
from oncue.protocol.records import CANCELLED, ERROR, LOST, OK, Failure
from tests.integration.node_site import DIE_AT_RUN, NodeSite
from tests.integration.test_agent import by_id


def note(path: str, n: int, seconds: float = 0.0) -> int:
    import time

    with open(path, "a") as f:
        f.write(f"{n}\n")
    time.sleep(seconds)
    return n


def environment() -> dict[str, str]:
    import os

    return dict(os.environ)


def large(n: int) -> bytes:
    return bytes([n]) * 3_000_000


def cores_and_gpus() -> tuple[list[int], str]:
    import os

    return sorted(os.sched_getaffinity(0)), os.environ["CUDA_VISIBLE_DEVICES"]


def size(value: list[int]) -> int:
    return len(value)


def wait_for(path: str, n: int, go: str) -> int:
    import os
    import time

    with open(path, "a") as f:
        f.write(f"{n}\n")
    while not os.path.exists(go):
        time.sleep(0.01)
    return n


@pytest.fixture
def site(tmp_path: Path) -> Iterator[NodeSite]:
    site = NodeSite(tmp_path)
    for packed in map(pack_function, (note, environment, large, size, wait_for, cores_and_gpus)):
        site.bridge.functions[packed.id] = packed
    yield site
    site.close()


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes"


def begun(path: Path) -> list[int]:
    return [int(n) for n in path.read_text().split()] if path.exists() else []


def test_tasks_run_on_nodes(site: NodeSite) -> None:
    site.start_agent()
    site.start_node("b1", 2)
    site.start_node("b2")

    site.bridge.dispatch("double", {n: (n,) for n in range(1, 1_001)})
    site.bridge.until(lambda: len(site.bridge.ended) == 1_000)

    assert {n: unpack(e.value) for n, e in by_id(site.bridge.ended).items()} == {n: 2 * n for n in range(1, 1_001)}


def test_a_killed_node_costs_what_ran_there_and_the_rest_runs_elsewhere(site: NodeSite, notes: Path) -> None:
    site.start_agent()
    node = site.start_node("b1", 2)
    site.bridge.dispatch("note", {n: (str(notes), n, 600.0) for n in (1, 2)})
    site.bridge.until(lambda: sorted(begun(notes)) == [1, 2])
    site.bridge.dispatch("note", {n: (str(notes), n) for n in range(3, 20)})

    node.kill()
    node.wait()
    site.command("end_block b1 NODE_FAIL")
    site.start_node("b2", 2)
    site.bridge.until(lambda: len(site.bridge.ended) == 19)

    ended = by_id(site.bridge.ended)
    assert {n: e.status for n, e in ended.items()} == {1: LOST, 2: LOST} | dict.fromkeys(range(3, 20), OK)
    assert sorted(begun(notes)) == list(range(1, 20)), "each is begun once"
    why = decode(Failure, ended[1].value).message
    assert why.endswith("of job b1 was lost while it ran the task: NODE_FAIL")


def test_a_node_that_closed_its_connection_is_lost_without_the_scheduler(site: NodeSite, notes: Path) -> None:
    site.start_agent(closed_us=1_000_000)
    node = site.start_node("b1")
    site.bridge.dispatch("note", {1: (str(notes), 1, 600.0)})
    site.bridge.until(lambda: begun(notes) == [1])

    node.kill()
    site.bridge.until(lambda: len(site.bridge.ended) == 1)

    why = decode(Failure, site.bridge.ended[0].value).message
    assert "it closed its connection and did not come back" in why


def test_workers_do_not_outlive_a_killed_node(site: NodeSite) -> None:
    site.start_agent()
    node = site.start_node("b1", 2)
    workers = psutil.Process(node.pid).children()
    assert len(workers) == 2

    node.kill()
    node.wait()

    assert psutil.wait_procs(workers, timeout=30)[1] == []


def test_the_next_node_removes_what_a_killed_one_has_left(site: NodeSite) -> None:
    scratch = site.folder / "scratch"
    site.start_agent()
    node = site.start_node("b1")
    site.start_node("b2")
    (of_killed,) = scratch.glob("oncue-node-b1-*")
    (alive,) = scratch.glob("oncue-node-b2-*")
    (scratch / "oncue-node-b1-elsewhere-x").mkdir()  # another host's, on a shared disk
    (scratch / "oncue-node-b1-elsewhere-x" / "lock").touch()
    node.kill()
    node.wait()
    assert of_killed.exists()

    site.start_node("b2")

    assert not of_killed.exists()
    assert alive.exists()
    assert len([*scratch.iterdir()]) == 3, "with that of another host"


def test_the_script_of_a_job_removes_what_its_killed_node_has_left(tmp_path: Path) -> None:
    (tmp_path / "my tmp").mkdir()
    files = JobFiles(tmp_path / "jobs")
    node = "import os; from oncue.endpoint.nodes.node_folder import node_folder as f; f(None, 'ab12').__enter__()"
    command = shlex.join([sys.executable, "-c", f"{node}; os.kill(os.getpid(), 9)"])
    request = JobRequest("oncue-ab12-1", command, cleanup=cleanup_command("ab12"))
    script = write_script(files, request, [], LaunchOptions())

    done = subprocess.run(["bash", script], env=os.environ | {"TMPDIR": str(tmp_path / "my tmp")}, check=False)

    assert done.returncode == 137
    assert not [*(tmp_path / "my tmp").iterdir()]


def test_a_restarted_agent_takes_over_what_its_nodes_run(site: NodeSite, notes: Path) -> None:
    agent = site.start_agent()
    site.start_node("b1", 2)
    go = site.folder / "go"
    site.bridge.dispatch("wait_for", {n: (str(notes), n, str(go)) for n in (1, 2)})
    site.bridge.until(lambda: sorted(begun(notes)) == [1, 2])

    agent.kill()
    agent.wait()
    go.touch()  # they end while there is no agent
    site.start_agent()
    site.bridge.until(lambda: len(site.bridge.ended) == 2)
    site.bridge.dispatch("double", {3: (3,)})
    site.bridge.until(lambda: len(site.bridge.ended) == 3)

    assert {n: e.status for n, e in by_id(site.bridge.ended).items()} == {1: OK, 2: OK, 3: OK}
    assert sorted(begun(notes)) == [1, 2]


def kill_with_tasks_on_their_way(site: NodeSite, agent: subprocess.Popen[bytes], count: int) -> None:
    """Dispatch tasks, and kill the agent when its journal says that they have started."""
    (site.folder / DIE_AT_RUN).touch()
    site.bridge.dispatch("double", {n: (n,) for n in range(1, count + 1)})
    site.bridge.until(lambda: agent.poll() is not None)


def test_tasks_that_were_on_their_way_when_the_agent_was_killed_run_uncharged(site: NodeSite) -> None:
    agent = site.start_agent()
    site.start_node("b1")
    late = site.start_node("b2")
    kill_with_tasks_on_their_way(site, agent, 8)
    late.send_signal(signal.SIGSTOP)  # it comes back later

    site.start_agent()
    late.send_signal(signal.SIGCONT)
    site.bridge.until(lambda: len(site.bridge.ended) == 8)

    assert {n: (e.status, e.attempt) for n, e in by_id(site.bridge.ended).items()} == dict.fromkeys(
        range(1, 9), (OK, 1)
    )


def test_tasks_on_their_way_are_lost_if_a_node_that_may_run_them_is_gone(site: NodeSite) -> None:
    agent = site.start_agent()
    node = site.start_node("b1")
    site.start_node("b2")
    kill_with_tasks_on_their_way(site, agent, 1)
    node.kill()
    node.wait()

    site.start_agent()
    site.command("end_block b1 NODE_FAIL")
    site.bridge.until(lambda: len(site.bridge.ended) == 1)

    assert site.bridge.ended[0].status == LOST
    assert "a node that may have run it was gone" in decode(Failure, site.bridge.ended[0].value).message


def test_another_python_is_named_and_is_no_lost_worker(site: NodeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of other systems die of it, and users are told that a worker was lost."""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("class Scan:\n    def name(self): return 'a'\n", space)
    with monkeypatch.context() as patched:
        patched.setattr("oncue.pickles.code.PYTHON", "3.9")
        args = pack_args((space["Scan"](),), {})
    site.start_agent()
    node = site.start_node("b1")
    workers = psutil.Process(node.pid).children()

    site.dispatch_payload("size", 1, args)
    site.bridge.until(lambda: len(site.bridge.ended) == 1)

    (end,) = site.bridge.ended
    failure = decode(Failure, end.value)
    assert (end.status, failure.type) == (ERROR, "oncue.CannotLoad")
    assert "bytecode of Python 3.9, which the worker's Python" in failure.message
    assert psutil.Process(node.pid).children() == workers


def test_a_cancel_reaches_the_node(site: NodeSite, notes: Path) -> None:
    site.start_agent()
    site.start_node("b1")
    site.bridge.dispatch("note", {1: (str(notes), 1, 600.0)})
    site.bridge.until(lambda: begun(notes) == [1])

    site.bridge.send(wire.CancelTasks("enough"), (1).to_bytes(16, "big"))
    site.bridge.until(lambda: len(site.bridge.ended) == 1)

    assert site.bridge.ended[0].status == CANCELLED


def test_a_drained_block_gets_no_new_task_and_exits_when_it_is_dismissed(site: NodeSite, notes: Path) -> None:
    site.start_agent()
    node = site.start_node("b1")
    site.command("drain_block b1")
    site.bridge.dispatch("note", {1: (str(notes), 1)})
    site.start_node("b2")
    site.bridge.until(lambda: len(site.bridge.ended) == 1)

    site.command("dismiss b1")

    assert node.wait(60) == 0
    site.bridge.until(lambda: any(line.startswith("b1 left") for line in site.changes()))
    assert list((site.folder / "scratch").iterdir()) != [], "the folder of b2's node"
    assert len(list((site.folder / "scratch").iterdir())) == 1, "the folder of b1's node is gone"


@pytest.mark.parametrize("how", ["hand_back", "SIGTERM"])
def test_tasks_of_a_block_that_ends_run_elsewhere_uncharged(site: NodeSite, notes: Path, how: str) -> None:
    site.start_agent()
    node = site.start_node("b1")
    site.bridge.dispatch("note", {1: (str(notes), 1, 3.0)})
    site.bridge.until(lambda: begun(notes) == [1])

    if how == "SIGTERM":
        node.send_signal(signal.SIGTERM)
        assert node.wait(60) == 0
    else:
        site.command("hand_back b1")
    site.start_node("b2")
    site.bridge.until(lambda: len(site.bridge.ended) == 1)

    (end,) = site.bridge.ended
    assert (end.status, end.attempt) == (OK, 1)
    assert begun(notes) == [1, 1], "begun again, as the same attempt"


def test_large_arguments_and_results_travel_by_hash(site: NodeSite) -> None:
    """The node has no folder in common with the agent."""
    site.start_agent()
    site.start_node("b1")

    site.bridge.dispatch("large", {7: (7,)})
    site.bridge.until(lambda: len(site.bridge.ended) == 1)

    (end,) = site.bridge.ended
    assert end.status == OK
    assert end.value[:1] == REF
    blob = ref_of(end.value)
    assert blob is not None
    assert list(site.bridge.blobs) == [blob.sha256]

    large_argument = pack_args(([7] * 500_000,), {})
    sha256 = hashlib.sha256(large_argument).hexdigest()
    site.bridge.blobs[sha256] = large_argument
    site.dispatch_payload("size", 8, pack_ref(Ref(sha256, len(large_argument))))
    site.bridge.until(lambda: len(site.bridge.ended) == 2)
    assert unpack(site.bridge.ended[1].value) == 500_000


def test_the_secret_of_a_block_is_in_no_command_line_and_not_in_tasks(site: NodeSite) -> None:
    site.start_agent()
    node = site.start_node("b1")
    secret = site.keys("b1").secret.decode()

    site.bridge.dispatch("environment", {1: ()})
    site.bridge.until(lambda: len(site.bridge.ended) == 1)

    here = psutil.Process(node.pid)
    assert secret not in " ".join(here.cmdline())
    if os.geteuid() == 0:  # else nobody but root reads it
        assert secret.encode() not in Path(f"/proc/{node.pid}/environ").read_bytes()
    assert not [name for name in unpack(site.bridge.ended[0].value) if name.startswith("ONCUE_NODE")]


@pytest.mark.skipif(sys.platform != "linux", reason="affinity of processes needs Linux")
def test_workers_of_a_node_are_pinned(site: NodeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    here = sorted(os.sched_getaffinity(0))
    site.start_agent()
    site.start_node("b1", 1, arguments=("--pin", "gpus", "--worker-gpus", "1", "--worker-cores", "1"))

    site.bridge.dispatch("cores_and_gpus", {1: ()})
    site.bridge.until(lambda: len(site.bridge.ended) == 1)

    assert list(unpack(site.bridge.ended[0].value)) == [here[:1], "5"]


def test_a_stranger_is_refused_and_ends(site: NodeSite) -> None:
    site.start_agent()
    site.start_node("b1")

    stranger = site.start_node("b1", secret=curve.make_keys().secret)
    site.bridge.dispatch("double", {1: (1,)})
    site.bridge.until(lambda: len(site.bridge.ended) == 1)

    assert stranger.wait(60) == 1
    assert "the agent does not know this block" in site.log("b1")


def test_odd_messages_end_only_the_node_that_sent_them(site: NodeSite) -> None:
    site.start_agent()
    site.start_node("b2")
    found = read_addresses(site.folder / ADDRESS_FILE)
    assert found is not None
    with zmq.Context() as context, curve.dealer(context, found.key.encode(), site.keys("b1")) as odd:
        curve.connect(odd, found.addresses[0])
        hello = wire.Hello(wire.PROTOCOL, "1", "3.11", "host", 1, b"12345678", b"", 1, 0)
        for parts in (
            [b"\xc1"],
            [b""] * 50,
            [wire.encode(wire.AgentEnvelope(1, 0, 0, hello))],
            [wire.encode(wire.AgentEnvelope(1, 1, 0, wire.Results(0, 1, b"", 1, 10))), b"not ends"],
            [wire.encode(wire.AgentEnvelope(1, 2, 0, wire.Credit(1)))],
        ):
            odd.send_multipart(parts)
        assert odd.poll(30_000)

    site.bridge.dispatch("double", {n: (n,) for n in range(1, 50)})
    site.bridge.until(lambda: len(site.bridge.ended) == 49)

    assert {e.status for e in site.bridge.ended} == {OK}
    assert "its messages cannot be read" in site.log("agent")


def test_a_silent_node_is_lost(site: NodeSite, notes: Path) -> None:
    """A stopped process keeps its connection open."""
    site.start_agent(silent_us=3_000_000)
    node = site.start_node("b1")
    site.bridge.dispatch("note", {1: (str(notes), 1, 600.0)})
    site.bridge.until(lambda: begun(notes) == [1])
    (worker,) = psutil.Process(node.pid).children()

    node.send_signal(signal.SIGSTOP)
    site.bridge.until(lambda: len(site.bridge.ended) == 1)

    why = decode(Failure, site.bridge.ended[0].value).message
    assert "it was silent for 3 s" in why
    # When it goes on, it learns that the task is not its own any more.
    node.send_signal(signal.SIGCONT)
    assert psutil.wait_procs([worker], timeout=60)[1] == []
