"""One person's uploads do not fill the disk of all: by HTTP, as functions, by an agent."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

import pytest

from oncue import curve
from oncue.protocol import bridge
from tests.e2e.running import System, system_in
from tests.security.hostile_agent import HostileAgent

SIZE = 2 << 20


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Yield a server on whose disk one owner may have about 3 blobs of SIZE."""
    folder = tmp_path_factory.mktemp("quota")
    found = os.statvfs(folder)
    percent = 100 * 3.5 * SIZE / (found.f_blocks * found.f_frsize)
    with system_in(folder, "--no-endpoint", ONCUE_OWNER_BLOBS_PERCENT=f"{percent:.12f}") as system:
        yield system


def token_of(system: System, subject: str) -> str:
    return str(system.json("tokens", "create", subject, "--subject", subject, "--scope", "user")["token"])


def upload(system: System, token: str) -> int:
    content = os.urandom(SIZE)
    name = hashlib.sha256(content).hexdigest()
    answer = system.http("PUT", f"/v1/blobs/{name}", content, token=token)
    if answer.status == 409:
        assert "one owner's share of its disk" in answer.json["detail"]
        assert "owner_blobs_percent" in answer.json["remedy"]
    return answer.status


def test_uploads_beyond_ones_share_are_refused_and_others_go_on(system: System) -> None:
    mallory, alice = token_of(system, "mallory"), token_of(system, "alice")
    assert [upload(system, mallory) for _ in range(5)] == [201, 201, 201, 409, 409]
    assert upload(system, token_of(system, "mallory")) == 409, "another token of the same person"
    assert upload(system, alice) == 201
    assert [upload(system, system.local["token"]) for _ in range(5)] == [201] * 5, "an admin has no limit"


def test_an_agents_uploads_count_for_its_owner(system: System) -> None:
    token, keys = token_of(system, "eve"), curve.make_keys()
    asked = {"name": "hers", "public_key": keys.public.decode()}
    made = system.http("POST", "/v1/endpoints", asked, token=token).json
    with HostileAgent(made["bridge"], made["server_key"].encode(), keys) as agent:
        agent.hello()
        agent.say(bridge.UploadPart(os.urandom(32).hex(), 0, 4 * SIZE), b"x")
        agent.say(bridge.UploadPart(os.urandom(32).hex(), 0, 3 * SIZE), b"x")
        answers = [m for m, _ in agent.hear(5.0) if isinstance(m, bridge.UploadAck)]
        assert ["one owner's share of its disk" in a.why for a in answers] == [True, False]
        assert upload(system, token) == 409, "the unfinished upload has the room"
        agent.say(bridge.Bye("enough"))
        system.await_true(lambda: upload(system, token) == 201, "an upload that ended gives its room back")


def test_a_restart_forgets_nothing(system: System) -> None:
    bob = token_of(system, "bob")
    assert [upload(system, bob) for _ in range(4)] == [201, 201, 201, 409]
    system.down()
    system.up("--no-endpoint")
    assert upload(system, bob) == 409
