"""While some callers send a route's dearest valid requests, the server answers all others, and agents stay connected."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator

import pytest

from oncue.dispatcher.http.routes.table import ROUTES
from tests.security.dear_requests import DEAR, Dear, _rule_file
from tests.security.raw_http import in_threads
from tests.security.stall import check_no_stall
from tests.security.world import OWNER, World, world_in

CALLERS = 2  # the machines that test have two cores
EVENTS, TASKS, RULES = 20_000, 20_000, 1_000
CLOSED = 2_000  # tasks that can be retried


def test_every_route_has_its_dear_requests() -> None:
    assert {f"{r.method} {r.template}" for r in ROUTES} == set(DEAR)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server that has something to list."""
    with world_in(tmp_path_factory.mktemp("full")) as world:
        event = '{"specversion":"1.0","id":"%d","source":"/dear","type":"dear","data":{"n":[%s]}}'
        for start in range(0, EVENTS, 5_000):
            many = "[" + ",".join(event % (i, "1,2,3") for i in range(start, start + 5_000)) + "]"
            kind = {"Content-Type": "application/cloudevents-batch+json"}
            assert world.send("POST", "/v1/events", many.encode(), token=_token(world), headers=kind).status == 202
        batch = {"function": "zqmark_fn", "endpoint": "zqmark-idle"}
        world.made("POST", "/v1/tasks/batch", batch | {"calls": [[[], {"word": "x" * 5_000}]] * CLOSED})
        for _ in range(0, CLOSED, 1_000):
            world.made("POST", "/v1/tasks/cancel", {"filter": {"endpoint": "zqmark-idle"}, "limit": 1_000})
        world.made("POST", "/v1/tasks/batch", batch | {"calls": [[[], {"word": "x" * 200}]] * TASKS})
        for text in (_rule_file(RULES), _rule_file(RULES, "b")):
            files, functions = [{"label": "many", "text": text}], {"zqmark_fn": world.ids["function"]}
            world.made("POST", "/v1/rules", {"files": files, "functions": functions})
        yield world


def _token(world: World) -> str:
    return world.tokens[OWNER, "user"]


def send_all(world: World, requests: list[Dear]) -> list[int]:
    """Send each request from all callers at once, one request after the other; return the statuses."""
    statuses: list[int] = []

    def caller() -> None:
        for r in requests:
            token = world.system.local["token"] if r.admin else _token(world)
            given = None if "Authorization" in r.headers else token
            with contextlib.suppress(OSError, http.client.HTTPException):  # refused while it was being sent
                statuses.append(
                    world.send(r.method, r.path, r.body, token=given, headers=r.headers, seconds=r.seconds).status
                )

    in_threads(CALLERS, caller)
    return statuses


@pytest.mark.parametrize("route", DEAR)
def test_a_dear_request_holds_up_nobody(full: World, route: str) -> None:
    requests = DEAR[route](full)
    statuses: list[int] = []

    figures = check_no_stall(
        full.system.local["url"],
        lambda: statuses.extend(send_all(full, requests)),
        endpoint="zqmark-ep",
        token=full.system.local["token"],
    )

    print(route, figures, json.dumps(sorted(set(statuses))))
    assert not [s for s in statuses if s >= 500 and s != 503], statuses
