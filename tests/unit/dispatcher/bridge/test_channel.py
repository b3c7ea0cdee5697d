"""EndpointChannel: loading, holding, redirecting, and the list of servers. See tests/simulation for failures."""

from __future__ import annotations

from oncue import ids
from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.dispatcher.bridge.effects import ChannelPhase, LoadOpenTasks, PhaseChanged, SendFrame, StoreResults
from oncue.dispatcher.bridge.pending_tasks import OpenTask, TaskGroup
from oncue.dispatcher.bridge.server_ends import end_by_server
from oncue.protocol import bridge
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import EXPIRED, OK, VERSION, Call, Ended, Failure, ResultFrame, TaskFrame, TaskRecord

CALL = Call(VERSION, "f" * 64, "ep", "ada")
TASKS = [TaskRecord(i, b"m\x92\x90\x80") for i in ids.batch_ids("ada", ids.new_uuid7(), 4)]
ROWS = [OpenTask(n, CALL, 1, 1, 0, task) for n, task in enumerate(TASKS)]
WHY = encode(Failure("oncue.TaskExpired", "late"))


def frame(*tasks: TaskRecord) -> TaskFrame:
    return TaskFrame(VERSION, CALL, 5, list(tasks))


class Harness:
    """A channel whose effects are recorded. `answer_loads`: the view has the four TASKS as open tasks."""

    def __init__(self, epoch: int = 1, answer_loads: bool = True) -> None:
        self.channel, self.n, self.answer_loads = EndpointChannel("ep", epoch, "srv", "0"), 0, answer_loads
        self.channel.servers = (("tcp://a:1", "a" * 40),)
        self.messages: list[bridge.BridgeEnvelope] = []  # to the agent
        self.sent: list[bytes] = []  # tasks
        self.stores: list[StoreResults] = []
        self.loads: list[LoadOpenTasks] = []

    def receive(self, message: bridge.FromAgent, body: bytes = b"") -> None:
        """Deliver the agent's next message."""
        head = bridge.encode(bridge.AgentEnvelope(9, self.n, 0, message))
        self.n += 1
        self.channel.on_frame([head, body] if body else [head], 1_000_000 + self.n)
        self.run_effects()

    def hello(self, epoch: int = 0) -> None:
        self.receive(bridge.Hello(bridge.PROTOCOL, "0", "3.11", "host", 1, b"b" * 8, b"j" * 8, 2, 0, epoch))

    def connect(self) -> None:
        self.hello()
        self.receive(bridge.Credit(10))

    def finish(self, end: Ended) -> StoreResults:
        """Deliver a result. Return the append that it causes."""
        self.receive(bridge.Results(1, 1, encode(CALL), 1, 1), encode([end]))
        return self.stores[-1]

    def run_effects(self) -> None:
        while effects := self.channel.drain():
            for effect in effects:
                if isinstance(effect, SendFrame):
                    envelope, body = bridge.decode_from_bridge(effect.parts)
                    self.messages.append(envelope)
                    if isinstance(envelope.message, bridge.Dispatch):
                        self.sent += [t.id for t in decode(list[TaskRecord], body)]
                elif isinstance(effect, StoreResults):
                    self.stores.append(effect)
                elif isinstance(effect, LoadOpenTasks):
                    self.loads.append(effect)
                    if self.answer_loads:
                        rows = [r for r in ROWS if r.seq > effect.after and r.task.id not in self.sent]
                        self.channel.on_page(effect.token, rows)


def test_a_held_task_is_not_sent() -> None:
    h = Harness()
    h.hello()
    assert h.channel.hold(TASKS[1].id)
    h.receive(bridge.Credit(10))
    assert h.sent == [TASKS[0].id, TASKS[2].id, TASKS[3].id]


def test_a_task_at_the_agent_or_just_ended_cannot_be_held() -> None:
    h = Harness()
    h.hello()
    h.receive(bridge.Credit(1))
    assert h.sent == [TASKS[0].id]
    assert not h.channel.hold(TASKS[0].id)
    end = Ended(TASKS[0].id, 1, OK, 1, 2, b"m\xc0")
    h.receive(bridge.Results(1, 1, encode(CALL), 1, 1), encode([end]))
    assert not h.channel.at_agent(TASKS[0].id)
    assert not h.channel.hold(TASKS[0].id)  # its end is being appended


def test_a_released_task_is_sent() -> None:
    h = Harness()
    h.hello()
    assert h.channel.hold(TASKS[1].id)
    h.receive(bridge.Credit(10))  # drops the held task from the queue
    h.channel.release([TASKS[1].id])
    h.run_effects()
    assert sorted(h.sent) == sorted(t.id for t in TASKS)


def test_after_a_failed_append_the_agent_still_has_the_task() -> None:
    """The disk is full. The agent sends the result again after its next Hello."""
    h = Harness()
    h.hello()
    h.receive(bridge.Credit(1))
    end = Ended(TASKS[0].id, 1, OK, 1, 2, b"m\xc0")
    store = h.finish(end)
    h.channel.on_store_failed(store.token)
    assert not h.channel.hold(TASKS[0].id)


def test_a_task_from_the_log_reader_is_added_once() -> None:
    """Also if a page of the view has it, too."""
    h = Harness(epoch=7, answer_loads=False)
    h.connect()
    (load,) = h.loads
    h.channel.add_tasks(frame(TASKS[1]), 10, 5)  # the requested page has it
    h.channel.add_tasks(frame(TASKS[2]), 10, 6)  # the requested page does not have it
    h.channel.on_page(load.token, [OpenTask(n << 16, CALL, 5, 1, 0, TASKS[n]) for n in (0, 1)], 6)
    h.run_effects()
    h.channel.add_tasks(frame(TASKS[1]), 10, 5)  # the reader delivers it after the page
    h.channel.add_tasks(frame(TASKS[3]), 10, 7)
    h.run_effects()
    assert h.sent == [t.id for t in TASKS]


def test_a_task_that_is_closed_in_the_view_is_not_sent_when_its_record_arrives() -> None:
    h = Harness(epoch=7, answer_loads=False)
    h.connect()
    (load,) = h.loads
    h.channel.on_page(load.token, [], 6)  # the view has the record at 5, and the task is closed
    h.channel.add_tasks(frame(TASKS[0]), 10, 5)
    h.run_effects()
    assert h.sent == []


def test_redirect_sends_the_agent_to_the_new_owner_and_ends_no_task() -> None:
    h = Harness(epoch=7, answer_loads=False)
    h.connect()
    h.channel.on_page(h.loads[0].token, [OpenTask(0, CALL, 5, 1, 0, TASKS[0])], 1)
    h.run_effects()
    assert h.channel.in_flight
    h.channel.redirect(9, bridge.Redirect("tcp://b:1", "b" * 40, "another acts"))
    effects = h.channel.drain()
    assert not [e for e in effects if isinstance(e, StoreResults)]
    (send,) = [e for e in effects if isinstance(e, SendFrame)]
    envelope, _ = bridge.decode_from_bridge(send.parts)
    assert (envelope.n, envelope.epoch, envelope.message) == (
        -1,
        9,
        bridge.Redirect("tcp://b:1", "b" * 40, "another acts"),
    )
    assert h.channel.phase is ChannelPhase.AWAY


def test_a_connected_agent_gets_a_changed_list_of_servers() -> None:
    h = Harness(epoch=7, answer_loads=False)
    h.connect()
    first = h.channel.servers
    h.channel.servers = (("tcp://a:1", "k" * 40), ("tcp://b:1", "b" * 40))
    at = h.channel.now_us
    for passed in (1, 2, 3):
        h.channel.tick(at + passed)
        h.run_effects()
    welcomes = [e for e in h.messages if isinstance(e.message, bridge.Welcome)]
    assert [(e.n, e.message.servers) for e in welcomes] == [(0, first), (welcomes[1].n, h.channel.servers)]
    assert [e.n for e in h.messages] == list(range(len(h.messages))), "the message is numbered, so its loss is noticed"


def test_an_agent_gets_the_list_of_servers_when_it_connects() -> None:
    h = Harness(epoch=7, answer_loads=False)
    h.channel.servers = (("tcp://b:1", "b" * 40),)
    h.channel.tick(5)
    h.run_effects()
    assert h.messages == []
    h.connect()
    h.channel.tick(h.channel.now_us + 1)
    h.run_effects()
    assert [e.message.servers for e in h.messages if isinstance(e.message, bridge.Welcome)] == [h.channel.servers]


def test_an_agent_with_the_first_protocol_is_refused_with_a_remedy() -> None:
    h = Harness(epoch=7, answer_loads=False)
    h.receive(bridge.Hello(1, "0.0.9", "3.11", "host", 1, b"b" * 8, b"j" * 8, 2, 0))
    (refusal,) = [e.message for e in h.messages if isinstance(e.message, bridge.Refuse)]
    assert refusal.code == "version"
    assert "protocol 1" in refusal.message
    assert refusal.remedy.startswith("install oncue ")
    assert "pip" not in refusal.remedy  # how depends on where oncue came from


def test_ends_by_the_server_have_its_epoch() -> None:
    h = Harness(epoch=7, answer_loads=False)
    group = TaskGroup(CALL, encode(CALL), 1, 5, [TASKS[0]], 0)
    h.channel.end_waiting(group, [end_by_server(TASKS[0], 1, EXPIRED, 9, WHY)])
    (store,) = [e for e in h.channel.drain() if isinstance(e, StoreResults)]
    assert decode(ResultFrame, store.record).epoch == 7


def test_an_agent_that_knows_a_later_claim_is_refused_where_servers_share_the_log() -> None:
    h = Harness(epoch=3)
    h.hello(epoch=70)
    assert isinstance(h.messages[-1].message, bridge.Refuse)


def test_an_agent_that_was_with_a_newer_log_connects_to_the_only_server_of_an_older_one() -> None:
    h = Harness(epoch=3)
    h.channel.sole = True
    h.hello(epoch=70)
    h.receive(bridge.Credit(10))
    assert isinstance(h.messages[0].message, bridge.Welcome)
    assert {m.epoch for m in h.messages} == {70}, "the agent ignores lower ones"
    assert h.sent == [t.id for t in TASKS]


def test_an_agent_cannot_choose_an_epoch_without_bound() -> None:
    h = Harness(epoch=3)
    h.channel.sole = True
    h.hello(epoch=(1 << 64) - 1)
    assert isinstance(h.messages[-1].message, bridge.Refuse)
    assert h.channel.epoch == 3


def test_two_agents_with_one_key_are_told() -> None:
    """The folder of an agent was copied, and both run. One that starts anew is no second one."""
    channel, said = EndpointChannel("ep", 1, "srv", "0"), list[str]()
    for number, boot in enumerate([b"a", b"a", b"b", b"b", b"a", b"b", b"b", b"c"]):
        hello = bridge.Hello(bridge.PROTOCOL, "0", "3.11", "host", 1, boot * 8, b"j" * 8, 2, 0)
        channel.on_frame([bridge.encode(bridge.AgentEnvelope(1 + number, 0, 0, hello))], 1_000_000 * number)
        said += [e.why for e in channel.drain() if isinstance(e, PhaseChanged) and e.phase is ChannelPhase.READY]
    assert ["TWO AGENTS" in why for why in said] == [False, False, False, False, True, True, True, False]
