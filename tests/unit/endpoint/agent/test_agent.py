"""The agent's state machine by itself: frames in, effects out, a journal in memory."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import msgspec

from oncue.endpoint.agent.agent import Agent, AgentIdentity
from oncue.endpoint.agent.effects import Connect, Effect, RememberServers, RunTasks, SendMessage
from oncue.endpoint.agent.fetcher import BlobCache
from oncue.endpoint.agent.journal import BLOCK, Journal, pack
from oncue.endpoint.agent.session import SessionPhase
from oncue.endpoint.blocks.records import BlockPhase, BlockRecord
from oncue.protocol import bridge
from oncue.protocol.codec import decode, encode
from oncue.protocol.payload import pack_args
from oncue.protocol.records import ERROR, LOST, OK, VERSION, Call, Ended, Failure, TaskRecord
from tests.simulation.site import MemoryCache, MemoryFile

BODY = b"the body"
FUNCTION = hashlib.sha256(BODY).hexdigest()
CALL = encode(Call(VERSION, FUNCTION, "ep", "me"))
WORKERS = 2


def task(n: int) -> TaskRecord:
    return TaskRecord(n.to_bytes(16, "big"), pack_args((), {}))


class Bench:
    """An agent, and what its bridge would see."""

    def __init__(
        self,
        file: MemoryFile | None = None,
        *,
        body: bool = True,
        new_identity: bytes = b"journal1",
        cache: BlobCache | None = None,
    ) -> None:
        self.file = file or MemoryFile()
        self.cache = cache or MemoryCache()
        if body:
            self.cache.write_function(FUNCTION, BODY)
        who = AgentIdentity("ep", "1", "3.12", "host", 7, b"boot8888")
        journal = Journal(self.file, new_identity)
        self.now_us = 1_000_000
        self.agent = Agent(who, journal, self.cache, random.Random(1), WORKERS, self.now_us)
        self.session = self.n = 0
        self.epoch = 5
        self.runs: list[RunTasks] = []

    def turn(self, room: int = 0) -> list[bridge.FromAgent]:
        """What was said in it; chunks go to `runs`."""
        said: list[bridge.FromAgent] = []
        for envelope, _ in self.frames(self.agent.turn(self.now_us, room, lambda _: 64)):
            said.append(envelope.message)
        return said

    def frames(self, effects: Sequence[Effect]) -> list[tuple[bridge.AgentEnvelope, bytes]]:
        out = []
        for effect in effects:
            if isinstance(effect, SendMessage):
                envelope, body = bridge.decode_from_agent(effect.parts)
                self.session = envelope.session
                out.append((envelope, body))
            elif isinstance(effect, RunTasks):
                self.runs.append(effect)
        return out

    def held(self) -> tuple[bridge.Hello, list[tuple[bytes, int]]]:
        """The greeting of this turn."""
        found = self.frames(self.agent.turn(self.now_us, 0, lambda _: 64))
        hellos = [e.message for e, _ in found if isinstance(e.message, bridge.Hello)]
        named = [
            h for e, body in found if isinstance(e.message, bridge.Inventory) for h in bridge.unpack_inventory(body)
        ]
        (hello,) = hellos
        self.n = 0
        return hello, named

    def hear(self, message: bridge.FromBridge, body: bytes = b"", *, n: int | None = None, epoch: int = 0) -> None:
        """A message of the bridge: with the right number, unless another is given."""
        number = self.n if n is None else n
        if n is None:
            self.n += 1
        head = bridge.encode(bridge.BridgeEnvelope(self.session, number, epoch or self.epoch, message))
        self.agent.on_message([head, body] if body else [head], self.now_us)

    def connect(self) -> Bench:
        self.turn()
        self.n = 0
        self.hear(bridge.Welcome(self.epoch, "srv", "1"))
        self.turn()
        assert self.agent.phase is SessionPhase.CONNECTED
        return self

    def dispatch(self, *tasks: TaskRecord, n: int | None = None) -> None:
        self.hear(bridge.Dispatch(CALL, 1, len(tasks), 3), encode(list(tasks)), n=n)

    def finish(self, *tasks: TaskRecord) -> None:
        self.agent.on_results([Ended(t.id, 1, OK, self.now_us, self.now_us + 1, b"mv") for t in tasks])


def results(said: Sequence[bridge.FromAgent]) -> list[int]:
    return [m.seq for m in said if isinstance(m, bridge.Results)]


def ends(bench: Bench) -> list[Ended]:
    """Of one turn."""
    found = bench.frames(bench.agent.turn(bench.now_us, 0, lambda _: 64))
    return [e for env, body in found if isinstance(env.message, bridge.Results) for e in decode(list[Ended], body)]


def dials(bench: Bench, after_us: int) -> list[Connect]:
    """Of the turn that comes so much later."""
    bench.now_us += after_us
    effects = bench.agent.turn(bench.now_us, 0, lambda _: 64)
    bench.frames(effects)
    return [e for e in effects if isinstance(e, Connect)]


def test_a_redirected_agent_dials_the_other_server_at_once_and_keeps_its_tasks() -> None:
    bench = Bench().connect()
    bench.dispatch(task(1))
    bench.turn()
    bench.hear(bridge.Redirect("tcp://other:1", "k" * 40, "another acts"), n=-1, epoch=6)
    assert bench.agent.phase is SessionPhase.DISCONNECTED
    assert dials(bench, 0) == [Connect("tcp://other:1", "k" * 40)]
    assert task(1).id in bench.agent.queue.held
    bench.hear(bridge.Welcome(6, "other", "1"), n=0, epoch=6)
    assert bench.agent.phase is SessionPhase.CONNECTED
    bench.hear(bridge.CancelTasks("a zombie's"), task(1).id, n=1, epoch=5)
    assert bench.agent.phase is SessionPhase.DISCONNECTED, "a lower epoch is not obeyed"


def test_servers_that_send_an_agent_in_circles_are_not_dialled_without_pause() -> None:
    bench = Bench()
    bench.turn()
    count = 0
    for _ in range(1_000):
        bench.hear(bridge.Redirect("tcp://other:1", "k" * 40), n=-1)
        bench.now_us += 1_000
        count += len(dials(bench, 0))
    assert 1 <= count <= 10, "of a thousand within a second"


def test_where_nobody_acts_yet_the_agent_asks_again_soon() -> None:
    bench = Bench()
    bench.turn()
    for _ in range(20):
        bench.hear(bridge.Redirect(why="not yet"), n=-1)
        assert dials(bench, 200_000) == []
        assert dials(bench, 300_000) == [Connect()], "in half a second, and never later"


def test_the_agent_learns_which_servers_there_are() -> None:
    bench = Bench()
    bench.turn()
    servers = (("tcp://a:1", "a" * 40), ("tcp://b:1", "b" * 40))
    bench.hear(bridge.Welcome(5, "srv", "1", -1, servers), n=0)
    assert RememberServers(servers) in bench.agent.turn(bench.now_us, 0, lambda _: 64)
    other = (("tcp://a:1", "k" * 40), servers[1])  # it came back with another key
    bench.hear(bridge.Welcome(5, "srv", "1", 7, other), n=1)
    said = bench.agent.turn(bench.now_us, 0, lambda _: 64)
    assert RememberServers(other) in said
    assert not any(isinstance(e, SendMessage) for e in said), "the session goes on as it was"
    bench.hear(bridge.Welcome(5, "srv", "1", 7, servers), n=1)  # a double
    assert not any(isinstance(e, RememberServers) for e in bench.agent.turn(bench.now_us, 0, lambda _: 64))


def test_another_version_is_refused_with_the_remedy_and_not_dialled_again() -> None:
    bench = Bench()
    bench.turn()
    bench.hear(bridge.Refuse("version", "too old", "upgrade oncue"), n=0)
    assert bench.agent.refused is not None
    assert bench.agent.refused.remedy == "upgrade oncue"
    bench.now_us += 3_600_000_000
    assert not any(isinstance(e, Connect | SendMessage) for e in bench.agent.turn(bench.now_us, 0, lambda _: 1))


def test_an_older_claim_is_not_obeyed() -> None:
    bench = Bench().connect()
    bench.hear(bridge.Dispatch(CALL, 1, 1, 3), encode([task(1)]), epoch=4)
    assert not bench.agent.queue.held
    assert bench.agent.phase is SessionPhase.DISCONNECTED
    assert bench.agent.next_wake_us() > bench.now_us  # another is dialled after a pause


def test_the_highest_epoch_survives_a_restart() -> None:
    bench = Bench().connect()
    bench.turn()
    again = Bench(bench.file)
    hello, _ = again.held()
    assert hello.epoch == 5
    again.hear(bridge.Welcome(4, "old owner", "1"), epoch=4)
    assert again.agent.phase is SessionPhase.DISCONNECTED


def test_what_is_of_another_session_is_dropped() -> None:
    bench = Bench().connect()
    old, bench.session = bench.session, bench.session - 1
    bench.dispatch(task(1))
    assert not bench.agent.queue.held
    bench.session, bench.n = old, 1
    bench.dispatch(task(1))
    assert list(bench.agent.queue.held) == [task(1).id]


def test_a_double_counts_once() -> None:
    bench = Bench().connect()
    bench.dispatch(task(1), n=1)
    bench.dispatch(task(1), n=1)
    assert bench.agent.received == 1
    bench.turn(room=2)
    assert [t.id for run in bench.runs for t in run.tasks] == [task(1).id]


def test_a_task_that_is_held_already_is_not_run_twice() -> None:
    bench = Bench().connect()
    bench.dispatch(task(1))
    bench.dispatch(task(1), task(2))
    bench.turn(room=4)
    bench.turn(room=4)
    assert sorted(t.id for run in bench.runs for t in run.tasks) == [task(1).id, task(2).id]
    assert bench.agent.received == 3  # what was sent counts for credit


def test_a_gap_greets_anew_and_names_all_that_is_held() -> None:
    bench = Bench().connect()
    bench.dispatch(task(1), task(2), task(3))
    bench.turn(room=1)
    bench.finish(task(1))  # spooled and not acked: it is held too
    bench.turn()
    before = bench.session
    bench.hear(bridge.Ack(99), n=7)
    hello, named = bench.held()
    assert bench.agent.phase is SessionPhase.HANDSHAKE
    assert bench.session > before
    assert hello.held == 3
    assert sorted(named) == [(task(i).id, 1) for i in (1, 2, 3)]
    bench.hear(bridge.Welcome(5, "srv", "1"))
    assert len(results(bench.turn())) == 1  # sent again


def test_results_stay_until_the_server_has_them() -> None:
    bench = Bench().connect()
    bench.dispatch(task(1))
    bench.turn(room=1)
    bench.finish(task(1))
    (seq,) = results(bench.turn())
    assert list(bench.agent.outbox.spool) == [seq]
    bench.hear(bridge.Ack(seq))
    assert not bench.agent.outbox.spool
    assert not bench.agent.queue.held


def test_a_result_is_in_the_journal_before_it_is_sent() -> None:
    bench = Bench().connect()
    bench.dispatch(task(1))
    bench.turn(room=1)
    bench.finish(task(1))
    assert results(bench.turn())
    again = Bench(bench.file)  # the process died right after
    _, named = again.held()
    assert named == [(task(1).id, 1)]
    again.hear(bridge.Welcome(5, "srv", "1"))
    assert [e.status for e in ends(again)] == [OK]


def test_what_was_handed_over_before_a_kill_is_lost_and_the_rest_goes_on() -> None:
    bench = Bench().connect()
    bench.dispatch(task(1))
    bench.turn(room=1)
    bench.dispatch(task(2))
    bench.turn()
    again = Bench(bench.file)
    again.turn()
    again.n = 0
    again.hear(bridge.Welcome(5, "srv", "1"))
    assert [(e.id, e.status) for e in ends(again)] == [(task(1).id, LOST)]
    again.turn(room=1)
    assert [t.id for run in again.runs for t in run.tasks] == [task(2).id]


def test_nothing_is_waited_for_when_nothing_else_runs() -> None:
    bench = Bench().connect()
    for n in range(1, 4):  # all in the same µs
        bench.dispatch(task(n))
        bench.turn(room=1)
        bench.finish(task(n))
        assert results(bench.turn())


def test_small_frames_wait_for_company_while_others_run() -> None:
    bench = Bench().connect()
    bench.dispatch(task(1), task(2), task(3))
    bench.turn(room=1)
    bench.finish(task(1))
    assert results(bench.turn())  # the first after a pause
    bench.finish(task(2))
    assert not results(bench.turn())
    bench.now_us = bench.agent.next_wake_us()
    assert results(bench.turn())


def test_the_total_granted_is_never_lowered() -> None:
    bench = Bench().connect()
    seen = [bench.agent.granted]
    assert seen[0] >= WORKERS
    for n in range(1, 60):
        bench.dispatch(task(n))
        bench.turn(room=1)
        if n % 3 == 0:  # a long one: fewer are wanted from here on
            bench.agent.on_results([Ended(task(n).id, 1, OK, 1, 1 + (10 if n < 30 else 5_000_000), b"mv")])
        said = bench.turn()
        seen += [m.granted for m in said if isinstance(m, bridge.Credit | bridge.Results)]
        bench.now_us += 2_000
    assert len(seen) > 3
    assert seen == sorted(seen)


def test_who_stops_grants_nothing_more() -> None:
    bench = Bench().connect()
    granted = bench.agent.granted
    bench.dispatch(task(1), task(2))
    bench.turn(room=2)
    bench.agent.stop("SIGTERM")
    bench.finish(task(1), task(2))
    said = bench.turn(room=2)
    assert results(said)
    assert {m.granted for m in said if isinstance(m, bridge.Results | bridge.Credit)} == {granted}


def test_tasks_whose_function_is_missing_end_with_the_reason() -> None:
    bench = Bench(body=False).connect()
    bench.dispatch(task(1), task(2))
    wants = [m for m in bench.turn(room=2) if isinstance(m, bridge.FetchPart)]
    assert [w.sha256 for w in wants] == [FUNCTION]
    bench.hear(bridge.BlobPart(FUNCTION, 0, 0, "no such function"))
    ended = ends(bench)
    assert [e.status for e in ended] == [ERROR, ERROR]
    why = decode(Failure, ended[0].value)
    assert "no such function" in why.message
    assert why.remedy
    assert not bench.runs


def test_a_body_that_comes_is_kept_and_its_tasks_run() -> None:
    bench = Bench(body=False).connect()
    bench.dispatch(task(1))
    bench.turn(room=2)
    bench.hear(bridge.BlobPart(FUNCTION, 0, len(BODY)), BODY)
    bench.turn(room=2)
    assert [(run.body, [t.id for t in run.tasks]) for run in bench.runs] == [(BODY, [task(1).id])]
    assert bench.cache.bodies == {FUNCTION: BODY}


def test_a_body_with_another_hash_is_not_run() -> None:
    bench = Bench(body=False).connect()
    bench.dispatch(task(1))
    bench.turn(room=2)
    bench.hear(bridge.BlobPart(FUNCTION, 0, 4), b"evil")
    assert [e.status for e in ends(bench)] == [ERROR]
    assert not bench.runs
    assert not bench.cache.bodies


def test_an_agent_without_its_journal_says_so() -> None:
    bench = Bench().connect()
    bench.dispatch(task(1))
    bench.turn()
    same, named = Bench(bench.file, new_identity=b"journal2").held()
    assert (same.journal, named) == (b"journal1", [(task(1).id, 1)])
    hello, named = Bench(new_identity=b"journal2").held()  # the file is gone
    assert (hello.journal, hello.held, named) == (b"journal2", 0, [])


def test_silence_is_noticed() -> None:
    bench = Bench().connect()
    bench.now_us += bridge.SILENCE_MS * 1000 + 1
    bench.turn()
    assert bench.agent.phase is SessionPhase.DISCONNECTED
    bench.now_us = bench.agent.next_wake_us()
    assert any(isinstance(e, Connect) for e in bench.agent.turn(bench.now_us, 0, lambda _: 1))


def test_a_full_disk_grants_no_credit_and_results_still_go() -> None:
    bench = Bench().connect()
    bench.dispatch(task(1), task(2))
    bench.turn(room=2)
    bench.file.room = 0
    bench.dispatch(task(3))
    bench.turn()
    granted = bench.agent.granted
    bench.finish(task(1), task(2))
    said = bench.turn()
    assert results(said)
    assert bench.agent.granted == granted
    bench.file.room = None
    bench.turn()
    assert bench.agent.granted >= granted
    _, named = Bench(bench.file).held()
    assert sorted(named) == [(task(i).id, 1) for i in (1, 2, 3)]


def test_tasks_that_may_not_start_yet_do_not_hold_up_others() -> None:
    bench = Bench().connect()
    other = hashlib.sha256(b"other").hexdigest()
    bench.cache.bodies[other] = b"other"
    bench.dispatch(task(1))
    call = msgspec.structs.replace(decode(Call, CALL), function=other)
    bench.hear(bridge.Dispatch(encode(call), 1, 1, 3), encode([task(2)]))
    bench.agent.admission = lambda call: call.function != FUNCTION

    bench.turn(room=4)
    assert [t.id for run in bench.runs for t in run.tasks] == [task(2).id]

    bench.agent.admission = lambda call: True
    bench.turn(room=4)
    assert [t.id for run in bench.runs for t in run.tasks] == [task(2).id, task(1).id]


def test_a_rewritten_journal_has_the_blocks() -> None:
    bench = Bench().connect()
    block = BlockRecord("a1", BlockPhase.RUNNING, 2, 8, 3600.0, job="12")
    bench.agent.other_records = lambda: [pack(BLOCK, encode(block))]

    file = MemoryFile()
    file.data += b"".join(bench.agent._all_records(5))

    assert Journal(file, b"journal1").recovered.blocks == {"a1": block}
