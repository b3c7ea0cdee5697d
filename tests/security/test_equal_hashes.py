"""Dicts of somebody else's values whose keys all have one hash, where the server makes or decodes such dicts."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from oncue.protocol import bridge
from oncue.protocol.codec import encode
from oncue.protocol.payload import MSGPACK
from oncue.protocol.records import OK, Ended
from tests.colliding import integers, packed_dict
from tests.e2e.running import system_in
from tests.security.stall import check_no_stall
from tests.security.test_agent_attacks import Attacker, await_acked, take
from tests.security.world import STRANGER, World

MSGPACK_BODY = {"Content-Type": "application/msgpack"}
RULE = "  - {name: NAME, on: {type: t}, match: {data.n: [NUMBERS]}, run: {function: chosen_fn, endpoint: chosen, args: [1]}}"


@pytest.fixture(scope="module")
def attacker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacker]:
    with system_in(tmp_path_factory.mktemp("hashes"), "--no-endpoint") as system:
        world = World(system)
        world.tokens[STRANGER, "user"] = world.token(STRANGER, "user")["token"]
        yield Attacker(world, "chosen")


def test_integers_of_a_rule_file(attacker: Attacker) -> None:
    """A set of 6,000 takes 0.4 s, and a rule file may have 45,000."""
    world, numbers = attacker.world, ", ".join(map(str, integers(6_000)))
    rules = [RULE.replace("NAME", f"r{n}").replace("NUMBERS", numbers + f", {n}") for n in range(6)]
    body = {"files": [{"label": "chosen", "text": "rules:\n" + "\n".join(rules)}]}
    body |= {"functions": {"chosen_fn": attacker.register("chosen_fn")}}

    def deploy() -> None:
        body["files"][0]["text"] += "\n#"
        assert world.send("POST", "/v1/rules", body, token=attacker.token).status == 200

    check_no_stall(world.system.local["url"], deploy)
    event = {"type": "t", "source": "/s", "data": {"n": 3.0}}
    assert world.system.http("POST", "/v1/events", event).status == 202
    world.system.await_true(lambda: world.system.tasks(rule="r3"), "the rule fires")


def test_calls_of_a_batch(attacker: Attacker) -> None:
    world, fields = attacker.world, {"function": "chosen_batch", "endpoint": "chosen"}
    attacker.register("chosen_batch")

    def body(count: int) -> bytes:
        call = b"\x92\x91" + packed_dict(count) + b"\x80"  # [[{...}], {}]
        return msgspec.msgpack.encode(fields | {"calls": [msgspec.Raw(call)]})

    def send() -> None:
        for count in (2_000, 30_000):
            reply = world.send("POST", "/v1/tasks/batch", body(count), token=attacker.token, headers=MSGPACK_BODY)
            assert reply.status == 422, reply
            assert "no texts" in reply.json["detail"]

    check_no_stall(world.system.local["url"], send)


def test_arguments_and_results_that_are_shown(attacker: Attacker) -> None:
    world, function = attacker.world, attacker.register("chosen_shown", "def f(*args): return 1")
    args = MSGPACK + b"\x92\x91" + packed_dict(4_000) + b"\x80"
    batch = msgspec.msgpack.encode({"function": function, "endpoint": "chosen", "payloads": [args] * 2})
    reply = world.send("POST", "/v1/tasks/batch", batch, token=attacker.token, headers=MSGPACK_BODY)
    assert reply.status == 202, reply
    with attacker.agent() as agent:
        agent.hello()
        taken = [found for found in take(agent, 3) if found[1].args == args]  # one is of a rule
        for n, (dispatch, task) in enumerate(taken):
            ended = Ended(task.id, 1, OK, 1, 2, MSGPACK + packed_dict(4_000 if n else 16_000))
            agent.say(bridge.Results(n, 1, dispatch.call, 1, 1_000), encode([ended]))
        await_acked(world, agent, 1)
    ids = [task.id.hex() for _, task in taken]

    def look() -> None:
        shown = [attacker.task(i) for i in ids]
        assert all("no texts" in task["arguments"] for task in shown)
        outcomes = world.send("POST", "/v1/tasks/outcomes", {"ids": ids}, token=attacker.token).json
        assert all("cannot be read" in outcome["value"] for outcome in outcomes)

    check_no_stall(world.system.local["url"], look)
