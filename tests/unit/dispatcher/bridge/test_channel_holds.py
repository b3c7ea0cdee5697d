"""A lane's word that a task waits and shall not be sent: what an executor's cancel() stands on."""

from __future__ import annotations

from oncue import ids
from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.dispatcher.bridge.effects import LoadOpenTasks, SendFrame, StoreResults
from oncue.dispatcher.bridge.pending_tasks import OpenTask
from oncue.protocol import bridge
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import OK, VERSION, Call, Ended, TaskRecord

CALL = Call(VERSION, "f" * 64, "ep", "ada")
TASKS = [TaskRecord(i, b"m\x92\x90\x80") for i in ids.batch_ids("ada", ids.new_uuid7(), 4)]
ROWS = [OpenTask(n, CALL, 1, 1, 0, task) for n, task in enumerate(TASKS)]


class Site:
    """A lane with an agent that has said hello, and the four tasks in its queue, as the view has them."""

    def __init__(self) -> None:
        self.channel, self.n, self.loads = EndpointChannel("ep", 1, "srv", "0"), 0, 0
        self.sent: list[bytes] = []
        self.stores: list[StoreResults] = []
        self.says(bridge.Hello(bridge.PROTOCOL, "0", "3.11", "host", 1, b"b" * 8, b"j" * 8, 2, 0))

    def says(self, message: bridge.FromAgent, body: bytes = b"") -> None:
        head = bridge.encode(bridge.AgentEnvelope(7, self.n, 0, message))
        self.n += 1
        self.channel.on_frame([head, body] if body else [head], 1_000_000 + self.n)
        self.look()

    def tells(self, end: Ended) -> StoreResults:
        """Of an end; what the lane wants stored."""
        self.says(bridge.Results(1, 1, encode(CALL), 1, 1), encode([end]))
        return self.stores[-1]

    def look(self) -> None:
        """Carry out what the lane wants: tasks that are sent, and pages of the open ones."""
        while effects := self.channel.drain():
            for effect in effects:
                if isinstance(effect, SendFrame):
                    envelope, body = bridge.decode_from_bridge(effect.parts)
                    if isinstance(envelope.message, bridge.Dispatch):
                        self.sent += [t.id for t in decode(list[TaskRecord], body)]
                elif isinstance(effect, StoreResults):
                    self.stores.append(effect)
                elif isinstance(effect, LoadOpenTasks):
                    self.loads += 1
                    rows = [r for r in ROWS if r.seq > effect.after and r.task.id not in self.sent]
                    self.channel.on_page(effect.token, rows)


def test_what_is_held_back_is_not_sent() -> None:
    site = Site()
    assert site.channel.hold(TASKS[1].id)
    site.says(bridge.Credit(10))
    assert site.sent == [TASKS[0].id, TASKS[2].id, TASKS[3].id]


def test_what_is_at_the_agent_or_has_ended_is_not_held_back() -> None:
    site = Site()
    site.says(bridge.Credit(1))
    assert site.sent == [TASKS[0].id]
    assert not site.channel.hold(TASKS[0].id)
    end = Ended(TASKS[0].id, 1, OK, 1, 2, b"m\xc0")
    site.says(bridge.Results(1, 1, encode(CALL), 1, 1), encode([end]))
    assert not site.channel.at_agent(TASKS[0].id)
    assert not site.channel.hold(TASKS[0].id)  # its end is on the way into the log


def test_what_is_released_is_sent_after_all() -> None:
    site = Site()
    assert site.channel.hold(TASKS[1].id)
    site.says(bridge.Credit(10))  # now it has been dropped from the queue
    site.channel.release([TASKS[1].id])
    site.look()
    assert sorted(site.sent) == sorted(t.id for t in TASKS)


def test_what_could_not_be_stored_is_at_the_agent_still() -> None:
    """A full disk: the agent has run it, and tells its end again after its next hello."""
    site = Site()
    site.says(bridge.Credit(1))
    end = Ended(TASKS[0].id, 1, OK, 1, 2, b"m\xc0")
    store = site.tells(end)
    site.channel.on_store_failed(store.token)
    assert not site.channel.hold(TASKS[0].id)
