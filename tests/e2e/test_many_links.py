"""Cut, frozen and healed links between an agent and several servers.

There is work all the while, and each task gets one outcome.
"""

from __future__ import annotations

import random
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.link import OUTSIDE, SERVER, Link, links
from tests.e2e.many import Many, many_servers
from tests.e2e.test_many_servers import double, slow_double


@pytest.fixture
def two(kafka: tuple[str, str], tmp_path: Path) -> Iterator[tuple[Many, list[Link]]]:
    try:
        socket.create_server((OUTSIDE, 0)).close()
    except OSError:
        pytest.skip(
            f"{OUTSIDE} is not an address of this machine: sudo ifconfig lo0 alias {OUTSIDE}, on {sys.platform}"
        )
    with links(2) as wires, many_servers(tmp_path, kafka[0], 0) as many:
        for wire in wires:
            many.add(
                ONCUE_HOST=OUTSIDE,
                ONCUE_BRIDGE_HOST=SERVER,
                ONCUE_BRIDGE_PORT=str(wire.port),
                ONCUE_ADVERTISE_HOST=OUTSIDE,
            )
        yield many, wires


@pytest.mark.parametrize("seed", range(2))
def test_links_are_cut_and_frozen_at_random(two: tuple[Many, list[Link]], seed: int) -> None:
    many, wires = two
    rng = random.Random(seed)
    for name, server in zip(("e1", "e2"), many.servers, strict=True):
        many.endpoint(name, server)
    with many.servers[0].client() as at_a, many.servers[1].client() as at_b:
        waves = [c.map(slow_double, range(200), endpoint=e) for c in (at_a, at_b) for e in ("e1", "e2")]
        assert waves[0][0].result(60) == 0
        assert sum(wire.passed for wire in wires) > 0
        for what in rng.sample(["cut", "freeze", "cut", "freeze"], 4):
            chosen = rng.sample(wires, rng.choice((1, 2)))
            for wire in chosen:
                getattr(wire, what)()
            many.pass_session(rng.choice((0.2, 2.0)))
            for wire in chosen:
                wire.heal()
        for tasks in waves:
            assert at_b.gather(tasks, 120) == [2 * n for n in range(200)]
    many.agree(800)


def test_a_server_is_killed_while_the_link_is_cut(two: tuple[Many, list[Link]]) -> None:
    """The agent finds the new owner and reports each outcome once."""
    many, wires = two
    a, b = many.servers
    many.endpoint("e1", a)
    with b.client() as client:
        assert client.submit(double, 1, endpoint="e1").result(60) == 2
        tasks = client.map(slow_double, range(200), endpoint="e1")
        assert tasks[0].result(60) == 0
        for wire in wires:
            wire.freeze()
        a.server.kill()
        many.pass_session(3.0)  # longer than the servers wait for each other, and for the agent
        for wire in wires:
            wire.heal()
        assert client.gather(tasks, 120) == [2 * n for n in range(200)]
    a.up("--no-endpoint")
    many.agree(201)
