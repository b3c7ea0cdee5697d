"""One node as its agent sees it, message by message."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import pytest

from oncue.endpoint.agent.unclaimed_tasks import ClaimedTasks
from oncue.endpoint.nodes.node_pool import AHEAD, CLOSED_US, LATE_US, SILENT_US, NodePool
from oncue.endpoint.pool.chunk_size import ChunkSizer
from oncue.errors import Undecodable
from oncue.protocol import bridge
from oncue.protocol.codec import decode, encode
from oncue.protocol.payload import Ref, pack_args, pack_ref
from oncue.protocol.records import CANCELLED, LOST, OK, VERSION, Call, Ended, Failure, TaskRecord
from oncue.protocol.reports import Output, Started

BODY = b"body of a function"
FUNCTION = hashlib.sha256(BODY).hexdigest()
NOW = 1_000_000_000


class Content:
    """NodeContent in memory."""

    def __init__(self) -> None:
        self.known = {FUNCTION: BODY}

    def read(self, sha256: str, offset: int, size: int) -> tuple[int, bytes]:
        if sha256 not in self.known:
            raise OSError(2, "no such content")
        return len(self.known[sha256]), self.known[sha256][offset : offset + size]

    def write(self, node: str, sha256: str, offset: int, size: int, part: bytes) -> int:
        raise OSError(28, "No space left on device")

    def abort(self, node: str) -> None: ...


class FakeSite:
    """The agent: its content, and the tasks of before its restart."""

    def __init__(self) -> None:
        self.content, self.sizer = Content(), ChunkSizer()
        self.before: list[ClaimedTasks] = []
        self.size_of = lambda function, options: (0, 1)

    def claim(self, held: Iterable[tuple[bytes, int]]) -> list[ClaimedTasks]:
        ids = {i for i, _ in held}
        return [c for c in self.before if ids & {t.id for t in c.tasks}]

    def told(self, key: tuple[str, bytes]) -> None: ...


class Node:
    """A NodePool, and the node's end of the connection."""

    def __init__(self, workers: int = 2, *, epoch: int = 0, held: int = 0, connect: bool = True) -> None:
        self.site = FakeSite()
        self.hello = bridge.Hello(bridge.PROTOCOL, "1", "3.11", "n1", 7, b"bootboot", b"", workers, held, epoch)
        self.pool = NodePool("b1", self.hello, self.site, 5, NOW)
        self.session, self.number = 0, 0
        if connect:
            self.connect()

    def connect(self) -> None:
        self.session, self.number = self.session + 1, 0
        self.send(self.hello)
        if not self.hello.held:
            self.send(bridge.Credit(4_096))

    def send(self, message: bridge.FromAgent, body: bytes = b"") -> None:
        envelope = bridge.AgentEnvelope(self.session, self.number, 0, message)
        self.number += 1
        self.pool.on_message(envelope, body, self.pool.now_us)

    def received(self) -> list[tuple[bridge.FromBridge, bytes]]:
        out, self.pool.out = self.pool.out, []
        found = [bridge.decode_from_bridge(parts) for parts in out]
        return [(envelope.message, body) for envelope, body in found]

    def run(self, *numbers: int, args: bytes = pack_args((), {})) -> list[TaskRecord]:
        tasks = [TaskRecord(n.to_bytes(16, "big"), args) for n in numbers]
        self.pool.run(FUNCTION, 0, 1, tasks)
        return tasks

    def end(
        self, *tasks: TaskRecord, status: int = OK, value: bytes = b"m\xc0", attempt: int = 1, took: int = 0
    ) -> None:
        now = self.pool.now_us
        ends = [Ended(t.id, attempt, status, now - took, now, value) for t in tasks]
        call = encode(Call(VERSION, FUNCTION, "b1", ""))
        self.send(bridge.Results(self.number, len(ends), call, 1, 4_096), encode(ends))

    def fetch(self, sha256: str = FUNCTION) -> bridge.BlobPart:
        self.pool.out.clear()
        self.send(bridge.FetchPart(sha256))
        ((part, _),) = self.received()
        assert isinstance(part, bridge.BlobPart)
        return part

    def lost(self) -> list[bytes]:
        return [e.id for _, _, ends in self.events.ended for e in ends if e.status == LOST]

    def drain(self) -> None:
        self.events = self.pool.drain()

    def requeued(self) -> list[bytes]:
        return [t.id for _, _, tasks in self.events.requeue for t in tasks]


def test_a_new_node_gets_as_many_tasks_as_it_has_workers() -> None:
    node = Node(workers=2)

    assert node.pool.room() == 2
    node.run(1)
    node.run(2)
    assert node.pool.room() == 0


def test_short_tasks_are_sent_ahead() -> None:
    node = Node(workers=2)
    node.end(*node.run(1), took=10)

    node.run(2)

    assert node.pool.room() == 2 * AHEAD - 1


def test_no_task_is_sent_before_the_node_says_that_a_worker_is_ready() -> None:
    node = Node(connect=False)
    node.session = 1
    node.send(node.hello)

    assert node.pool.room() == 0
    node.send(bridge.Credit(0, "workers cannot be started: no such Python"))
    assert (node.pool.room(), node.pool.trouble) == (0, "workers cannot be started: no such Python")
    node.send(bridge.Credit(10))
    assert node.pool.room() == 2


def test_what_waits_behind_a_long_task_comes_back() -> None:
    node = Node(workers=1)
    node.end(*node.run(1), took=10)
    (long,), (waits,) = node.run(2), node.run(3)
    node.received()

    node.pool.tick(NOW + LATE_US + 1)
    ((recall, ids), _) = [m for m in node.received() if isinstance(m[0], bridge.Recall)] + [(None, None)]
    assert isinstance(recall, bridge.Recall)
    assert not recall.running
    assert bridge.unpack_ids(ids or b"") == [long.id, waits.id]
    node.end(waits, status=CANCELLED, value=bridge.RECALLED)
    node.drain()

    assert node.requeued() == [waits.id]
    assert node.pool.room() == 0, "its only worker is busy"


def test_a_chunk_is_recalled_once_however_long_it_runs() -> None:
    node = Node(workers=4)
    node.run(1)
    node.pool.tick(NOW + 1)
    node.run(2)
    node.received()

    node.pool.tick(NOW + LATE_US + 1)
    assert [body for m, body in node.received() if isinstance(m, bridge.Recall)] == [bytes(15) + b"\x01"]
    node.pool.tick(NOW + LATE_US + 2)
    assert [body for m, body in node.received() if isinstance(m, bridge.Recall)] == [bytes(15) + b"\x02"]
    node.pool.tick(NOW + 2 * LATE_US)
    assert not [m for m, _ in node.received() if isinstance(m, bridge.Recall)]
    assert not node.pool.tasks.take_late(NOW + 10 * LATE_US), "nothing to look at is left"


def test_a_node_that_gave_tasks_back_gets_no_others_until_one_ends() -> None:
    """A task may take the room of several workers."""
    node = Node(workers=4)
    (wide,), *rest = node.run(1), node.run(2), node.run(3)
    node.pool.tick(NOW + LATE_US + 1)

    node.end(*(t for tasks in rest for t in tasks), status=CANCELLED, value=bridge.RECALLED)
    assert node.pool.room() == 0
    node.end(wide, took=600_000)
    assert node.pool.room() == 4


def test_a_node_that_gave_tasks_back_is_tried_again() -> None:
    node = Node(workers=2)
    node.run(1)
    (back,) = node.run(2)
    node.pool.tick(NOW + LATE_US + 1)
    node.end(back, status=CANCELLED, value=bridge.RECALLED)
    assert node.pool.room() == 0

    for step in range(1, 8):
        node.send(bridge.Heartbeat(1))
        node.pool.tick(NOW + LATE_US + step * 1_000_000)

    assert node.pool.room() == 1


def test_a_node_that_vanishes_costs_what_may_have_begun() -> None:
    node = Node()
    node.run(1)
    node.fetch()
    node.pool.job = "job 4711"

    node.pool.lose("NODE_FAIL")
    node.drain()

    assert (node.lost(), node.requeued()) == ([(1).to_bytes(16, "big")], [])
    why = decode(Failure, node.events.ended[0][2][0].value).message
    assert why == "the node n1 of job 4711 was lost while it ran the task: NODE_FAIL"


def test_tasks_whose_function_or_argument_the_node_has_not_got_are_requeued() -> None:
    node = Node()
    blob = b"large" * 1_000_000
    sha256 = hashlib.sha256(blob).hexdigest()
    node.site.content.known[sha256] = blob
    (waits,) = node.run(1, args=pack_ref(Ref(sha256, len(blob))))
    node.fetch()
    node.fetch(sha256)  # the first part of five

    node.pool.lose("NODE_FAIL")
    node.drain()

    assert (node.lost(), node.requeued()) == ([], [waits.id])


def test_a_node_that_was_with_an_earlier_agent_may_have_the_function_already() -> None:
    node = Node(epoch=3)
    (task,) = node.run(1)

    node.pool.lose("NODE_FAIL")
    node.drain()

    assert (node.lost(), node.requeued()) == ([task.id], [])


def test_tasks_of_before_a_restart_are_claimed_and_strangers_cancelled() -> None:
    node = Node(epoch=3, held=2, connect=False)
    mine, stranger = (1).to_bytes(16, "big"), (2).to_bytes(16, "big")
    node.site.before = [ClaimedTasks(FUNCTION, 1, [TaskRecord(mine, b"")])]
    node.connect()

    node.send(bridge.Inventory(True), bridge.pack_inventory([(mine, 1), (stranger, 1)]))

    cancels = [body for message, body in node.received() if isinstance(message, bridge.CancelTasks)]
    assert cancels == [stranger]
    assert set(node.pool.tasks.held) == {mine}
    node.send(bridge.Credit(4_096))
    assert node.pool.room() == 0, "the stranger's end may still come"
    node.end(TaskRecord(stranger, b""), status=CANCELLED)
    assert node.pool.room() == 1


def test_what_did_not_reach_the_node_is_requeued() -> None:
    node = Node()
    (task,) = node.run(1)

    node.connect()  # and it names nothing
    node.drain()

    assert node.requeued() == [task.id]


def test_results_of_other_tasks_and_attempts_are_dropped() -> None:
    node = Node()
    (task,) = node.run(1)

    node.end(TaskRecord((9).to_bytes(16, "big"), b""), status=OK)
    node.end(task, attempt=2)
    node.drain()

    assert node.events.ended == []
    assert set(node.pool.tasks.held) == {task.id}


def test_a_node_gets_content_of_its_tasks_only() -> None:
    node = Node()
    secret = hashlib.sha256(b"secret").hexdigest()
    node.site.content.known[secret] = b"secret"

    assert node.fetch(secret).why == "no task of this node needs it"
    assert node.fetch().why == "no task of this node needs it"
    node.run(1)
    assert node.fetch().why == ""


def test_a_result_that_the_agent_cannot_store_is_refused_with_the_reason() -> None:
    node = Node()
    node.received()

    node.send(bridge.UploadPart("ab" * 32, 0, 10), b"0123456789")

    ((ack, _),) = node.received()
    assert isinstance(ack, bridge.UploadAck)
    assert "No space left on device" in ack.why


def test_results_are_acked_when_the_journal_has_them() -> None:
    node = Node()
    node.end(*node.run(1))
    node.received()

    node.pool.acknowledge()
    assert node.received() == [], "they were not drained yet"
    node.drain()
    node.pool.acknowledge()

    assert [type(message) for message, _ in node.received()] == [bridge.Ack]


def test_reports_name_the_node_and_only_its_own_tasks_count() -> None:
    node = Node()
    (task,) = node.run(1)
    other = (9).to_bytes(16, "big")

    node.send(bridge.ReportFrame(), encode(Started(VERSION, "b1", ((task.id, 1, 5), (other, 1, 5)), "w1")))
    node.send(bridge.ReportFrame(), encode(Output(VERSION, "b1", task.id, 1, 0, b"hello")))
    node.send(bridge.ReportFrame(), encode(Output(VERSION, "b1", other, 1, 0, b"forged")))
    node.drain()

    assert node.events.started == [(task.id, 1, 5, "w1 on n1")]
    assert node.events.output == [(task.id, 1, 0, b"hello")]


def test_odd_bodies_are_undecodable() -> None:
    node = Node()
    for message in (bridge.Results(0, 1, b"", 1, 1), bridge.ReportFrame()):
        with pytest.raises(Undecodable):
            node.send(message, b"\xc1")


def test_results_that_cannot_be_read_end_no_task() -> None:
    node = Node()
    (task,) = node.run(1)
    node.fetch()  # it may have begun

    with pytest.raises(Undecodable):
        node.send(bridge.Results(0, 1, b"\xc1", 1, 1), encode([Ended(task.id, 1, OK, NOW, NOW)]))
    node.pool.refuse("version", "its messages cannot be read")
    node.drain()

    assert node.lost() == [task.id]


def test_a_silent_node_is_lost_after_a_while() -> None:
    node = Node()
    node.run(1)

    node.pool.tick(NOW + SILENT_US)
    assert not node.pool.gone
    node.pool.tick(NOW + SILENT_US + 1)

    assert node.pool.gone == "it was silent for 30 s"


def test_a_node_that_closed_its_connection_may_come_back_for_a_while() -> None:
    node = Node()
    (task,) = node.run(1)
    node.pool.on_closed(NOW + 1)
    assert node.pool.room() == 0

    node.hello = bridge.Hello(bridge.PROTOCOL, "1", "3.11", "n1", 7, b"bootboot", b"", 2, 1, 5)
    node.connect()
    node.send(bridge.Inventory(True), bridge.pack_inventory([(task.id, 1)]))
    node.pool.now_us = NOW + CLOSED_US
    node.send(bridge.Heartbeat(1))
    node.pool.tick(NOW + CLOSED_US + 2)

    assert not node.pool.gone
    node.pool.on_closed(NOW + CLOSED_US + 3)
    node.pool.tick(NOW + 3 * CLOSED_US)
    assert node.pool.gone == "it closed its connection and did not come back"


def test_a_cancel_is_repeated_when_the_node_is_back() -> None:
    node = Node()
    (task,) = node.run(1)
    node.pool.on_closed(NOW + 1)
    node.pool.cancel([task.id])
    node.received()

    node.hello = bridge.Hello(bridge.PROTOCOL, "1", "3.11", "n1", 7, b"bootboot", b"", 2, 1, 5)
    node.connect()
    node.send(bridge.Inventory(True), bridge.pack_inventory([(task.id, 1)]))

    assert [body for message, body in node.received() if isinstance(message, bridge.CancelTasks)] == [task.id]


def test_bye_hands_back_what_has_not_ended() -> None:
    node = Node()
    (done,), (rest,) = node.run(1), node.run(2)
    node.fetch()

    node.end(done)
    node.send(bridge.Bye("SIGTERM"))
    node.drain()

    assert ([e.id for _, _, ends in node.events.ended for e in ends], node.requeued()) == ([done.id], [rest.id])
    assert node.pool.gone == "SIGTERM"
