"""Dead letters: dismiss, retry, and which users see letters, events and files."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from oncue.client import Client
from oncue.errors import Forbidden, Invalid, NotFound
from oncue.log import Record, open_log
from oncue.protocol.api import EndpointRequest
from oncue.protocol.topics import EVENTS
from tests.e2e.running import System, system_in

RULES = """
rules:
  - {name: NAME, on: {type: TYPE}, run: {function: work.py:add, endpoint: own, args: {a: "${data.n}"}}}
"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system without an agent; no test here needs a worker."""
    with system_in(tmp_path_factory.mktemp("dead"), "--no-endpoint") as found:
        yield found


def person(system: System, name: str, *scopes: str) -> str:
    """Return a token of this user."""
    body = {"name": name, "scopes": list(scopes) or ["user"], "subject": name}
    return str(system.http("POST", "/v1/tokens", body).json["token"])


def deploy(system: System, name: str, token: str) -> None:
    """Deploy a rule of this user on an endpoint whose agent never connects."""
    key = name.ljust(40, "x")
    with Client(system.local["url"], token) as client:
        client.endpoints.register(EndpointRequest(name="own", public_key=key))
    system.write("work.py", "def add(a, b=1):\n    return a + b\n")
    system.write(f"{name}.yaml", RULES.replace("NAME", name).replace("TYPE", name))
    env = {"ONCUE_URL": system.local["url"], "ONCUE_TOKEN": token}
    system.oncue("deploy", f"{name}.yaml", "--yes", env=env)


def make_dead_letters(system: System, kind: str, *keys: str) -> list[int]:
    """Emit events that lack a field; return the numbers of their dead letters."""
    for key in keys:
        system.http("POST", "/v1/events", {"type": kind, "source": "/dead", "id": key, "data": {"secret": key}})

    def in_list() -> list[dict[str, Any]]:
        found = [d for d in letters(system, "?all=1&limit=1000") if d["event"] and d["event"][1] in keys]
        return found if len(found) == len(keys) else []

    found = system.await_true(in_list, f"{len(keys)} dead letters")
    numbers = {d["event"][1]: d["id"] for d in found}
    return [numbers[key] for key in keys]


def letters(system: System, query: str = "", token: str = "") -> list[dict[str, Any]]:
    answer = system.http("GET", f"/v1/dead{query}", token=token)
    assert answer.status == 200, answer
    return list(answer.json["items"])


def test_a_dismissed_letter_leaves_the_list_for_good(stopped: System) -> None:
    """A dismissal is in the log. It holds after a kill and with a deleted view."""
    system = stopped
    system.up("--no-endpoint")
    deploy(system, "gone", system.local["token"])
    a, b, c, d, e = make_dead_letters(system, "gone", "a", "b", "c", "d", "e")
    output = system.oncue("dead", "dismiss", str(a), str(b), "--reason", "test shots").stdout
    assert output == "2 dismissed\n"
    assert [x["id"] for x in system.json("dead", "list")] == [e, d, c]
    assert system.oncue("dead", "dismiss", str(b), str(c)).stdout == (
        "1 dismissed; 1 had been retried or dismissed already\n"
    )
    system.oncue(
        "dead", "retry", str(d)
    )  # the rule is as wrong as it was: the event dies again, as a letter of its own
    again = system.await_true(
        lambda: [x["id"] for x in letters(system) if x["id"] > e and x["event"][1] == "d"], "the retried event's letter"
    )
    assert [x["id"] for x in letters(system)] == [*again, e]
    assert system.metric("oncue_dead_letters_open ") == 2
    system.await_true(lambda: system.metric("oncue_view_lag_records ") == 0, "the view has all")
    shown = {x["id"]: x for x in system.json("dead", "list", "--all")}
    assert {n: x["state"] for n, x in shown.items()} == (
        {a: "dismissed", b: "dismissed", c: "dismissed", d: "retried", e: "open", again[0]: "open"}
    )
    me = system.http("GET", "/v1/me").json["subject"]
    assert (shown[a]["settled_by"], shown[a]["settled_why"], shown[c]["settled_why"]) == (me, "test shots", "")
    assert shown[a]["settled_us"] > shown[a]["at_us"]
    text = system.oncue("dead", "show", str(b)).stdout
    assert f"dismissed by {me}" in text
    assert "(test shots)" in text
    before = letters(system, "?all=1"), letters(system)
    os.kill(system.server.pid, signal.SIGKILL)
    for path in system.data.glob("view.db*"):
        path.unlink()
    system.up("--no-endpoint")
    assert (letters(system, "?all=1"), letters(system)) == before
    # A dismissed letter can still be sent again.
    system.oncue("dead", "retry", str(a))
    assert system.http("GET", f"/v1/dead/{a}").json["state"] == "retried"
    system.await_true(lambda: [x for x in letters(system) if x["event"][1] == "a"], "the retried event's letter")
    assert system.json("dead", "dismiss", "--all", "--reason", "spring cleaning")["count"] == 3
    assert letters(system) == []
    assert system.oncue("dead", "list").stderr == "none\n"


def test_dismissing_is_atomic_and_idempotent(system: System) -> None:
    deploy(system, "twice", system.local["token"])
    (number,) = make_dead_letters(system, "twice", "x")
    with system.client() as client:
        with pytest.raises(NotFound, match="no dead letter 999999"):
            client.dead.dismiss([number, 999_999])
        assert client.dead.get(number).state == "open"
        for given in ({}, {"letters": [number], "all": True}, {"letters": [-1]}, {"leters": [number]}):
            refused = system.http("POST", "/v1/dead/dismiss", given)
            assert (refused.status, refused.json["code"]) == (422, "invalid"), given
            assert refused.json["remedy"]
        with pytest.raises(Invalid):
            client.dead.dismiss([])
        assert [client.dead.dismiss([number, number], "once") for _ in range(3)] == [1, 0, 0]
        assert client.dead.get(number).settled_why == "once"  # the first reason stays
        answer = system.http("POST", "/v1/dead/dismiss", {"letters": [number]})
        assert answer.json["count"] == 0
        with pytest.raises(NotFound):
            client.dead.get(999_999)
    output = system.oncue("dead", "dismiss", code=2).stderr
    assert "--all" in output


def test_letters_of_other_users_rules_are_not_found(system: System) -> None:
    """A rule's letter is visible to the rule's owner and to admins only.

    The letter contains what the owner was sent, whoever emitted the event.
    """
    alice, bob, reader = (person(system, "alice"), person(system, "bob"), person(system, "alice", "read"))
    deploy(system, "alices", alice)
    deploy(system, "bobs", bob)
    (hers,) = make_dead_letters(system, "alices", "hunter2")
    (his,) = make_dead_letters(system, "bobs", "hunter3")
    for token, own, other in ((alice, hers, his), (bob, his, hers), (reader, hers, his)):
        assert [d["id"] for d in letters(system, token=token)] == [own]
        assert [d["id"] for d in letters(system, "?all=1", token=token)] == [own]
        assert system.http("GET", f"/v1/dead/{own}", token=token).json["owner"] in ("alice", "bob")
        for method, path, body in (
            ("GET", f"/v1/dead/{other}", None),
            ("POST", f"/v1/dead/{other}/retry", {}),
            ("POST", "/v1/dead/dismiss", {"letters": [other]}),
            ("POST", "/v1/dead/dismiss", {"letters": [own, other]}),
        ):
            refused = system.http(method, path, body, token=token)
            assert refused.status == (403 if token == reader and method == "POST" else 404), (path, refused)
            assert b"hunter" not in refused.body
    assert {hers, his} <= {d["id"] for d in letters(system)}  # an admin's list
    with Client(system.local["url"], reader) as client, pytest.raises(Forbidden):
        client.dead.dismiss_all()
    with Client(system.local["url"], bob) as client:
        assert client.dead.dismiss_all("own") == 1
    assert system.http("GET", f"/v1/dead/{hers}").json["state"] == "open"
    assert [d["id"] for d in letters(system, token=alice)] == [hers]


@pytest.mark.embedded
def test_letters_without_an_owner_are_visible_to_admins_only(stopped: System) -> None:
    """A record that cannot be decoded has no owner."""
    system = stopped
    system.up("--no-endpoint")
    system.down()

    async def spoil() -> None:
        log = await open_log(f"sqlite://{system.data}/log")
        await log.append(EVENTS, [Record(b"\xff hunter2")])
        await log.close()

    asyncio.run(spoil())
    system.up("--no-endpoint")
    (found,) = system.await_true(lambda: letters(system), "a dead letter")
    assert (found["stage"], found["owner"]) == ("decode", "")
    ada = person(system, "ada")
    assert letters(system, "?all=1", token=ada) == []
    assert system.http("GET", f"/v1/dead/{found['id']}", token=ada).status == 404
    assert system.http("POST", "/v1/dead/dismiss", {"all": True}, token=ada).json["count"] == 0
    assert system.oncue("dead", "dismiss", str(found["id"])).stdout == "1 dismissed\n"


def test_rule_files_of_other_users_are_not_named(system: System) -> None:
    eve, fay = person(system, "eve"), person(system, "fay")
    deploy(system, "eves", eve)
    for method, path, body in (
        ("GET", "/v1/deployments/eves", None),
        ("POST", "/v1/deployments/eves/rollback", {"version": 1}),
        ("GET", "/v1/deployments/nothing", None),
        ("DELETE", "/v1/deployments/nothing", None),
    ):
        refused = system.http(method, path, body, token=fay)
        assert refused.status in (403, 404), (path, refused)
        assert "eves" not in refused.json["remedy"]
    system.http("DELETE", "/v1/deployments/eves", token=eve)
    # A label that is out of force still belongs to its owner, with its text and functions.
    assert system.http("POST", "/v1/deployments/eves/rollback", {"version": 1}, token=fay).status == 404
    assert system.http("POST", "/v1/deployments/eves/rollback", {"version": 1}, token=eve).status == 200


def test_all_users_see_events_but_only_owners_see_their_tasks(system: System) -> None:
    carl, dora = person(system, "carl"), person(system, "dora")
    deploy(system, "carls", carl)
    sent = {"type": "carls", "source": "/shared", "id": "good", "data": {"n": 3}}
    system.http("POST", "/v1/events", sent, token=dora)
    (task,) = system.await_true(lambda: system.tasks(rule="carls"), "a task")

    def found(token: str) -> dict[str, Any]:
        (event,) = system.http("GET", "/v1/events?source=/shared", token=token).json["items"]
        assert event["event"]["data"] == {"n": 3}
        one = system.http("GET", f"/v1/events/{event['offset']}", token=token).json
        assert one == event
        return dict(event)

    for token in (carl, ""):
        assert (found(token)["fired"], found(token)["tasks"]) == (["carls"], [task["id"]])
    assert (found(dora)["fired"], found(dora)["tasks"]) == ([], [])


@pytest.mark.embedded
def test_a_retried_letter_keeps_the_records_headers(stopped: System) -> None:
    """An event in binary mode is no event without its headers."""
    system = stopped
    system.up("--no-endpoint")
    deploy(system, "binary", system.local["token"])
    system.down()
    headers = {"ce_specversion": "1.0", "ce_id": "b1", "ce_source": "/lab", "ce_type": "binary"}
    headers |= {"content-type": "application/json"}

    async def write() -> None:
        log = await open_log(f"sqlite://{system.data}/log")
        named = tuple((name, text.encode()) for name, text in headers.items())
        await log.append(EVENTS, [Record(b'{"m": 7}', headers=named)])
        await log.close()

    asyncio.run(write())
    system.up("--no-endpoint")
    (found,) = system.await_true(lambda: letters(system), "a dead letter")
    assert (found["stage"], found["event"]) == ("args", ["/lab", "b1"])
    text = (system.folder / "binary.yaml").read_text().replace("data.n", "data.m")
    system.write("binary.yaml", text)
    system.oncue("deploy", "binary.yaml", "--yes")
    system.oncue("dead", "retry", str(found["id"]))
    (task,) = system.await_true(lambda: system.tasks(rule="binary") or letters(system), "its task")
    assert task["event"] == ["/lab", "b1"]
