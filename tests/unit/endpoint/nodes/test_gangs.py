"""Nodes of tasks that need several, message by message."""

from __future__ import annotations

from collections.abc import Iterable

from oncue.endpoint.agent.known_nodes import KnownNodes, NodeKey
from oncue.endpoint.agent.unclaimed_tasks import ClaimedTasks
from oncue.endpoint.nodes.gangs import HEARD_US
from oncue.endpoint.nodes.pool_set import PoolSet
from oncue.protocol import bridge
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import CANCELLED, ERROR, LOST, OK, VERSION, Call, Ended, Failure, TaskRecord
from oncue.protocol.run_options import Resources, RunOptions
from tests.unit.endpoint.nodes.test_node_pool import FUNCTION, NOW, Content

PAIR = RunOptions(Resources(nodes=2))
TRIO = RunOptions(Resources(nodes=3))
SECOND = 1_000_000


class Store:
    """A NodeStore that keeps nothing."""

    def node(self, key: NodeKey, *, known: bool) -> None: ...

    def nodes_complete(self, complete: bool) -> None: ...


class Cluster:
    """A PoolSet and its nodes: `b1.n1` is the node n1 of the block b1."""

    readable = False

    def __init__(self, *nodes: str, claimed: list[ClaimedTasks] | None = None) -> None:
        self.now_us = NOW
        self.sent: dict[bytes, list[list[bytes]]] = {}
        self.closed: set[bytes] = set()
        self.numbers: dict[str, int] = {}
        self.claimed = claimed or []
        self.pools = PoolSet(
            self, Content(), self.claim, KnownNodes(Store(), (), complete=True, adopts=True), 5, lambda: self.now_us
        )
        self.pools.size_of = lambda function, options: (options.resources.nodes if options else 0, 1)
        for name in nodes:
            self.join(name)

    # a NodeLink

    def send(self, route: bytes, parts: list[bytes]) -> bool:
        self.sent.setdefault(route, []).append(parts)
        return route not in self.closed

    def receive(self, on_message: object) -> None: ...

    def claim(self, held: Iterable[tuple[bytes, int]]) -> list[ClaimedTasks]:
        claimed, self.claimed = self.claimed, []
        return claimed

    # nodes

    def join(self, name: str, held: int = 0) -> None:
        _, _, host = name.partition(".")
        self.message(name, bridge.Hello(bridge.PROTOCOL, "1", "3.11", host, 7, host.encode() * 4, b"", 2, held, 0))
        if held:
            self.message(
                name, bridge.Inventory(True), bridge.pack_inventory([(n.to_bytes(16, "big"), 1) for n in (1,)])
            )
        self.message(name, bridge.Credit(4_096))

    def message(self, name: str, message: bridge.FromAgent, body: bytes = b"") -> None:
        n = self.numbers.get(name, 0)
        self.numbers[name] = n + 1
        parts = [bridge.encode(bridge.AgentEnvelope(1, n, 0, message)), *([body] if body else [])]
        self.pools.now_us = self.now_us
        self.pools.on_message(name.partition(".")[0], name.encode(), parts)

    def end(self, name: str, number: int, status: int = OK) -> None:
        ends = [Ended(number.to_bytes(16, "big"), 1, status, self.now_us - SECOND, self.now_us, b"m\xc0")]
        call = encode(Call(VERSION, FUNCTION, "b1", ""))
        self.message(name, bridge.Results(number, 1, call, 1, 4_096), encode(ends))

    def vanish(self, name: str) -> None:
        self.message(name, bridge.Bye("it has vanished"))

    # the agent

    def run(self, number: int, options: RunOptions | None = None) -> None:
        self.pools.run(FUNCTION, b"", 0, 1, [TaskRecord(number.to_bytes(16, "big"), b"m\x90")], options)

    def ready(self, options: RunOptions | None) -> bool:
        return self.pools.may_start(FUNCTION, options)

    def dispatched(self) -> dict[str, tuple[int, tuple[str, ...]]]:
        """Return (task, hosts) of the newest task of each node."""
        found: dict[str, tuple[int, tuple[str, ...]]] = {}
        for route, messages in self.sent.items():
            for parts in messages:
                envelope, body = bridge.decode_from_bridge(parts)
                if isinstance(envelope.message, bridge.Dispatch):
                    (task,) = decode(list[TaskRecord], body)
                    run = decode(Call, envelope.message.call).run
                    found[route.decode()] = (int.from_bytes(task.id, "big"), run.hosts if run else ())
        return found

    def ended(self) -> dict[int, Ended]:
        return {int.from_bytes(e.id, "big"): e for _, _, ends in self.pools.drain().ended for e in ends}

    def wait(self, seconds: float) -> None:
        self.now_us += int(seconds * SECOND)
        self.pools.tick(self.now_us)


def test_a_gang_has_idle_nodes_of_one_block() -> None:
    cluster = Cluster("b1.n1", "b2.n2", "b2.n3")

    assert cluster.ready(PAIR)
    cluster.run(1, PAIR)

    ((lead, (task, hosts)),) = cluster.dispatched().items()
    assert (lead.partition(".")[0], task, set(hosts)) == ("b2", 1, {"n2", "n3"})
    assert lead.endswith(hosts[0]), "it runs on the first of its hosts"
    cluster.run(2)
    assert cluster.dispatched()["b1.n1"] == (2, ()), "nothing else gets its nodes"


def test_its_nodes_are_free_again_after_its_end() -> None:
    for status in (OK, CANCELLED):
        cluster = Cluster("b1.n1", "b1.n2")
        assert cluster.ready(PAIR)
        cluster.run(1, PAIR)
        (lead,) = cluster.dispatched()
        assert not cluster.pools.room()

        cluster.end(lead, 1, status)

        assert cluster.ended()[1].status == status
        assert cluster.pools.room() == 4
        assert cluster.ready(PAIR)


def test_two_gangs_run_side_by_side() -> None:
    cluster = Cluster("b1.n1", "b1.n2", "b1.n3", "b1.n4")

    for number in (1, 2):
        assert cluster.ready(PAIR)
        cluster.run(number, PAIR)

    found = cluster.dispatched().values()
    assert {task for task, _ in found} == {1, 2}
    assert {host for _, hosts in found for host in hosts} == {"n1", "n2", "n3", "n4"}
    assert not cluster.ready(PAIR)


def test_a_gang_that_waits_keeps_its_nodes_from_small_tasks() -> None:
    cluster = Cluster("b1.n1", "b1.n2")
    cluster.run(1)
    (busy,) = cluster.dispatched()

    assert not cluster.ready(PAIR)
    assert not cluster.ready(None), "both nodes are kept"
    assert not cluster.pools.room()
    cluster.end(busy, 1)
    cluster.ended()

    assert cluster.pools.room() == 1
    assert cluster.ready(PAIR)
    assert not cluster.ready(None)


def test_nodes_are_given_back_if_the_gang_waits_no_more() -> None:
    cluster = Cluster("b1.n1", "b1.n2")
    cluster.run(1)
    assert not cluster.ready(PAIR)

    cluster.pools.want_gangs([])

    assert cluster.ready(None)


def test_a_large_gang_has_its_turn_after_small_ones() -> None:
    cluster = Cluster("b1.n1", "b1.n2", "b1.n3")
    assert cluster.ready(PAIR)
    cluster.run(1, PAIR)
    (lead,) = cluster.dispatched()

    assert not cluster.ready(TRIO)
    assert not cluster.ready(PAIR)
    cluster.end(lead, 1)
    cluster.ended()

    assert not cluster.ready(PAIR), "the other one waits for longer"
    assert cluster.ready(TRIO)


def test_a_gang_whose_block_ends_too_soon_waits() -> None:
    cluster = Cluster("b1.n1", "b1.n2")
    cluster.pools.need_us = lambda function, options: 60 * SECOND
    cluster.pools.set_ends({"b1": NOW + 30 * SECOND})

    assert not cluster.ready(PAIR)

    cluster.pools.set_ends({"b1": NOW + 90 * SECOND})
    cluster.pools.want_gangs([(FUNCTION, PAIR)])
    assert cluster.ready(PAIR)


def test_a_node_that_vanishes_ends_its_gang_as_lost_with_node_and_job() -> None:
    cluster = Cluster("b1.n1", "b1.n2")
    cluster.pools.allow = lambda *_: None  # type: ignore[method-assign]
    for pool in cluster.pools._pools.values():
        pool.job = "job 4711"
    assert cluster.ready(PAIR)
    cluster.run(1, PAIR)
    ((lead, (_, hosts)),) = cluster.dispatched().items()

    cluster.vanish(f"b1.{hosts[1]}")

    end = cluster.ended()[1]
    assert end.status == LOST
    said = decode(Failure, end.value).message
    assert f"the node {hosts[1]} of job 4711, one of 2 that ran the task, was lost: it has vanished" in said
    told = [bridge.decode_from_bridge(parts)[0].message for parts in cluster.sent[lead.encode()]]
    assert any(isinstance(message, bridge.CancelTasks) for message in told), "its ranks are ended"
    assert not cluster.pools.room(), "until then its first node gets nothing"
    cluster.end(lead, 1, CANCELLED)
    assert not cluster.ended()
    assert cluster.pools.room() == 2


def failed_pair() -> tuple[Cluster, str]:
    """Return a cluster on whose two nodes a task has failed, and the node that did not run it."""
    cluster = Cluster("b1.n1", "b1.n2")
    assert cluster.ready(PAIR)
    cluster.run(1, PAIR)
    ((lead, (_, hosts)),) = cluster.dispatched().items()
    cluster.end(lead, 1, ERROR)
    assert not cluster.ended()
    return cluster, f"b1.{hosts[1]}"


def test_a_failure_counts_once_the_other_nodes_were_heard_of() -> None:
    cluster, other = failed_pair()

    cluster.wait(HEARD_US / SECOND + 1)
    cluster.message(other, bridge.Heartbeat(cluster.now_us))
    assert cluster.ended()[1].status == ERROR


def test_a_failure_because_a_node_vanished_is_a_loss() -> None:
    cluster, other = failed_pair()

    cluster.vanish(other)

    assert cluster.ended()[1].status == LOST
    assert cluster.pools.room() == 2


def test_a_gang_of_before_a_restart_has_its_block_until_it_ends() -> None:
    task = TaskRecord((1).to_bytes(16, "big"), b"m\x90")
    cluster = Cluster("b1.n1", claimed=[ClaimedTasks(FUNCTION, 1, [task], PAIR)])
    assert cluster.ready(None)

    cluster.join("b1.n2", held=1)

    assert not cluster.ready(None)
    cluster.end("b1.n2", 1)
    assert cluster.ended()[1].status == OK
    assert cluster.pools.room() == 4
