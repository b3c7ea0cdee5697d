"""What holds when two servers think that they act for one endpoint: lanes, fences, redirects; no sockets, no log."""

from __future__ import annotations

from pathlib import Path

from oncue import ids
from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.dispatcher.bridge.effects import ChannelPhase, LoadOpenTasks, SendFrame, StoreResults
from oncue.dispatcher.bridge.pending_tasks import OpenTask, TaskGroup
from oncue.dispatcher.bridge.server_ends import end_by_server
from oncue.endpoint.agent.servers import ServerAddress, ServerList
from oncue.endpoint.settings import EndpointSettings, resolve_server
from oncue.lifecycle import State
from oncue.log.base import partition_of
from oncue.protocol import bridge
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import EXPIRED, OK, VERSION, Call, Ended, Failure, Fence, ResultFrame, TaskFrame, TaskRecord
from oncue.protocol.topics import RESULTS, TaskTopics
from tests.unit.view.view_feed import Feed, run

CALL = Call(VERSION, "f" * 64, "ep", "ada")
TASKS = [TaskRecord(i, b"m\x92\x90\x80") for i in ids.batch_ids("ada", ids.new_uuid7(), 4)]
WHY = encode(Failure("oncue.TaskExpired", "late"))


class Site:
    """A lane, and what it says to an agent that grants it credit."""

    def __init__(self) -> None:
        self.channel, self.n = EndpointChannel("ep", 7, "srv", "0"), 0
        self.channel.servers = (("tcp://a:1", "a" * 40),)
        self.said: list[bridge.BridgeEnvelope] = []
        self.loads: list[LoadOpenTasks] = []
        self.sent: list[bytes] = []

    def says(self, message: bridge.FromAgent, body: bytes = b"") -> None:
        head = bridge.encode(bridge.AgentEnvelope(9, self.n, 0, message))
        self.n += 1
        self.channel.on_frame([head, body] if body else [head], 1_000_000 + self.n)
        self.look()

    def look(self) -> None:
        for effect in self.channel.drain():
            if isinstance(effect, SendFrame):
                envelope, body = bridge.decode_from_bridge(effect.parts)
                self.said.append(envelope)
                if isinstance(envelope.message, bridge.Dispatch):
                    self.sent += [t.id for t in decode(list[TaskRecord], body)]
            elif isinstance(effect, LoadOpenTasks):
                self.loads.append(effect)

    def connect(self) -> None:
        self.says(bridge.Hello(bridge.PROTOCOL, "0", "3.11", "host", 1, b"b" * 8, b"j" * 8, 2, 0))
        self.says(bridge.Credit(10))


def frame(*tasks: TaskRecord) -> TaskFrame:
    return TaskFrame(VERSION, CALL, 5, list(tasks))


def test_tasks_that_a_reader_brings_are_taken_once() -> None:
    """Whether the page from the view had them, or not."""
    site = Site()
    site.connect()
    (load,) = site.loads
    site.channel.add_tasks(frame(TASKS[1]), 10, 5)  # while the page is asked for; the page has it
    site.channel.add_tasks(frame(TASKS[2]), 10, 6)  # and this one it has not
    site.channel.on_page(load.token, [OpenTask(n << 16, CALL, 5, 1, 0, TASKS[n]) for n in (0, 1)], 6)
    site.look()
    site.channel.add_tasks(frame(TASKS[1]), 10, 5)  # the reader was slower than the page
    site.channel.add_tasks(frame(TASKS[3]), 10, 7)
    site.look()
    assert site.sent == [t.id for t in TASKS]


def test_a_task_that_closed_before_the_lane_was_opened_is_not_sent_when_its_record_comes() -> None:
    site = Site()
    site.connect()
    (load,) = site.loads
    site.channel.on_page(load.token, [], 6)  # the view has the record at 5, and the task is closed
    site.channel.add_tasks(frame(TASKS[0]), 10, 5)
    site.look()
    assert site.sent == []


def test_a_lane_that_is_handed_over_sends_its_agent_there_and_ends_nothing() -> None:
    site = Site()
    site.connect()
    site.channel.on_page(site.loads[0].token, [OpenTask(0, CALL, 5, 1, 0, TASKS[0])], 1)
    site.look()
    assert site.channel.in_flight
    site.channel.redirect(9, bridge.Redirect("tcp://b:1", "b" * 40, "another acts"))
    effects = site.channel.drain()
    assert not [e for e in effects if isinstance(e, StoreResults)]
    (send,) = [e for e in effects if isinstance(e, SendFrame)]
    envelope, _ = bridge.decode_from_bridge(send.parts)
    assert (envelope.n, envelope.epoch, envelope.message) == (
        -1,
        9,
        bridge.Redirect("tcp://b:1", "b" * 40, "another acts"),
    )
    assert site.channel.phase is ChannelPhase.AWAY


def test_an_agent_is_told_when_the_servers_change() -> None:
    site = Site()
    site.connect()
    first = site.channel.servers
    site.channel.servers = (("tcp://a:1", "k" * 40), ("tcp://b:1", "b" * 40))
    at = site.channel.now_us
    for passed in (1, 2, 3):
        site.channel.tick(at + passed)
        site.look()
    told = [e for e in site.said if isinstance(e.message, bridge.Welcome)]
    assert [(e.n, e.message.servers) for e in told] == [(0, first), (told[1].n, site.channel.servers)]
    assert [e.n for e in site.said] == list(range(len(site.said))), "a message as any other: one that is lost is a gap"


def test_an_agent_that_is_away_is_told_when_it_comes() -> None:
    site = Site()
    site.channel.servers = (("tcp://b:1", "b" * 40),)
    site.channel.tick(5)
    site.look()
    assert site.said == []
    site.connect()
    site.channel.tick(site.channel.now_us + 1)
    site.look()
    assert [e.message.servers for e in site.said if isinstance(e.message, bridge.Welcome)] == [site.channel.servers]


def test_an_agent_of_the_first_protocol_is_refused_with_the_remedy() -> None:
    site = Site()
    site.says(bridge.Hello(1, "0.0.9", "3.11", "host", 1, b"b" * 8, b"j" * 8, 2, 0))
    (refusal,) = [e.message for e in site.said if isinstance(e.message, bridge.Refuse)]
    assert refusal.code == "version"
    assert "protocol 1" in refusal.message
    assert "pip install" in refusal.remedy


def test_the_owners_own_ends_have_its_epoch() -> None:
    site = Site()
    group = TaskGroup(CALL, encode(CALL), 1, 5, [TASKS[0]], 0)
    site.channel.end_waiting(group, [end_by_server(TASKS[0], 1, EXPIRED, 9, WHY)])
    (store,) = [e for e in site.channel.drain() if isinstance(e, StoreResults)]
    assert decode(ResultFrame, store.record).epoch == 7


def test_what_a_server_ends_that_has_lost_its_partition_does_not_count(tmp_path: Path) -> None:
    """Its record comes behind the fence of its successor: a zombie's."""
    mine = partition_of(b"ep", 64)

    def late(epoch: int, task: TaskRecord) -> ResultFrame:
        return ResultFrame(VERSION, CALL, "", 5, [end_by_server(task, 1, EXPIRED, 9, WHY)], epoch)

    async def work(feed: Feed) -> None:
        await feed.put(TaskTopics().of("ep"), frame(*TASKS))
        await feed.put(RESULTS, late(3, TASKS[0]))  # before the fence: it counts
        await feed.put(RESULTS, Fence(VERSION, "srv2", 64, ((mine, 8), ((mine + 1) % 64, 90))))
        await feed.put(RESULTS, late(3, TASKS[1]), late(8, TASKS[2]))
        # What an agent says counts, whoever passes it on.
        await feed.put(RESULTS, ResultFrame(VERSION, CALL, "ep", 5, [Ended(TASKS[3].id, 1, OK, 1, 2, b"m\xc0")]))
        states = {i: state for i, (state, _) in (await feed.view.states([t.id for t in TASKS])).items()}
        assert [states[t.id] for t in TASKS] == [State.EXPIRED, State.WAITING, State.EXPIRED, State.SUCCEEDED]

    run(tmp_path, work)


def test_a_page_says_how_far_the_view_was(tmp_path: Path) -> None:
    async def work(feed: Feed) -> None:
        await feed.put(TaskTopics().of("ep"), frame(TASKS[0]), frame(TASKS[1]))
        rows, reached = await feed.view.open_page("ep", TaskTopics().of("ep"), -1, 10)
        assert ([row[5].id for row in rows], reached) == ([TASKS[0].id, TASKS[1].id], 2)
        assert await feed.view.open_page("none", TaskTopics().of("none"), -1, 10) == ([], 0)

    run(tmp_path, work)


def test_an_agent_remembers_the_servers_and_takes_them_in_turn(tmp_path: Path) -> None:
    settings = EndpointSettings(id="ep", name="e", bridge="tcp://home:1", server_key="h" * 40)
    servers = ServerList(tmp_path / "servers.json", lambda: resolve_server(settings))
    home = ServerAddress("tcp://home:1", "h" * 40)
    a, b = ServerAddress("tcp://a:1", "a" * 40), ServerAddress("tcp://b:1", "b" * 40)
    assert [servers.pick(), servers.pick()] == [home, home]
    assert not servers.has_several()
    servers.remember([(a.bridge, a.key), (home.bridge, home.key), (b.bridge, b.key)])
    again = ServerList(tmp_path / "servers.json", lambda: resolve_server(settings))
    assert again.has_several()
    assert [again.pick() for _ in range(4)] == [home, a, b, home]
    assert again.pick(b.bridge, b.key) == b
    assert again.pick() == home
    (tmp_path / "servers.json").write_text("not a list")
    assert ServerList(tmp_path / "servers.json", lambda: resolve_server(settings)).pick() == home
