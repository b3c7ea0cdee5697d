"""Every route, asked by everybody: who is refused, that nothing leaks, and that nothing changes.

The routes come from the table. One without an entry in CASES fails, so a new route needs its row here.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from oncue.dispatcher.auth.scopes import OPENS
from oncue.dispatcher.http.route import Route
from oncue.dispatcher.http.routes.table import ROUTES
from tests.security.world import CONTENT, OWNER, SCOPES, STRANGER, Reply, World, call

GONE = frozenset((404,))  # as if it did not exist
NOTHING = frozenset((200,))  # a list without the owner's
FORBIDDEN_OR_GONE = frozenset((403, 404))  # an endpoint by its name or id
Maker = Callable[[World], Any]


def none(_: World) -> None:
    return None


class Case(NamedTuple):
    """How a route is asked about the owner's objects.

    `path` and `body` name the fixed objects; `ends` makes another one, if the request would end it or can be done once.
    """

    path: Callable[[World], str]
    stranger: frozenset[int]  # statuses for somebody else with the right scope
    body: Maker = none
    ends: str = ""  # kind of object
    at: str = ""  # the place of that object in path and body: the fixed one's name in World.ids, or the name itself
    seconds: float = 30.0  # of a stream


def fixed(path: str) -> Callable[[World], str]:
    """Return the path with {kind} replaced by the owner's object."""
    return lambda world: path.format(**world.ids)


def _deploy(world: World) -> dict[str, Any]:
    text = "rules: [{name: zqmark-rule, on: {type: t}, run: {function: zqmark_fn, endpoint: zqmark-ep}}]"
    functions = {"zqmark_fn": world.ids["function"]}
    return {
        "files": [{"label": "zqmark-label", "text": text}],
        "functions": functions,
        "dry_run": True,
        "replace": True,
    }


#: Of everything that is asked for under its name: what it is for a stranger.
CASES: dict[str, list[Case]] = {
    "POST /v1/tasks": [
        Case(fixed("/v1/tasks"), FORBIDDEN_OR_GONE, lambda _: call()),
        Case(fixed("/v1/tasks"), FORBIDDEN_OR_GONE, lambda w: call(w.ids["endpoint"])),
    ],
    "POST /v1/tasks/batch": [
        Case(
            fixed("/v1/tasks/batch"),
            FORBIDDEN_OR_GONE,
            lambda w: {"function": w.ids["function"], "endpoint": w.ids["endpoint"], "calls": [[["zqmark-arg"], {}]]},
        )
    ],
    "GET /v1/tasks": [
        Case(fixed(f"/v1/tasks?limit=1000{query}"), NOTHING)
        for query in (
            "",
            f"&owner={OWNER}",
            "&rule=zqmark-rule",
            "&event_source=/shared/source&event_id=e1",
            "&since_us=1&state=open,succeeded",
            "&id={task}",
            "&not_retried=1",
        )
    ]
    + [
        Case(fixed("/v1/tasks?endpoint={endpoint}"), NOTHING | FORBIDDEN_OR_GONE),
        Case(fixed("/v1/tasks?function={function}"), NOTHING | FORBIDDEN_OR_GONE),
    ],
    "GET /v1/tasks/count": [
        Case(fixed("/v1/tasks/count?rule=zqmark-rule"), NOTHING),
        Case(fixed("/v1/tasks/count?endpoint={endpoint}"), FORBIDDEN_OR_GONE),
    ],
    "POST /v1/tasks/outcomes": [
        Case(fixed("/v1/tasks/outcomes"), NOTHING, lambda w: {"ids": [w.ids["task"], w.ids["waiting"]]})
    ],
    "POST /v1/tasks/cancel": [
        Case(fixed("/v1/tasks/cancel"), GONE, lambda w: {"tasks": [w.ids["waiting"]]}, ends="task", at="waiting"),
        Case(fixed("/v1/tasks/cancel"), frozenset((202,)), lambda _: {"filter": {"owner": OWNER}}),
        Case(fixed("/v1/tasks/cancel"), FORBIDDEN_OR_GONE, lambda w: {"filter": {"endpoint": w.ids["endpoint"]}}),
    ],
    "POST /v1/tasks/retry": [
        Case(fixed("/v1/tasks/retry"), GONE, lambda w: {"tasks": [w.ids["task"]]}),
        Case(fixed("/v1/tasks/retry"), frozenset((202,)), lambda _: {"filter": {"owner": OWNER, "state": "closed"}}),
    ],
    "GET /v1/tasks/{id}": [Case(fixed("/v1/tasks/{task}"), GONE), Case(fixed("/v1/tasks/{waiting}?wait_ms=10"), GONE)],
    "GET /v1/tasks/{id}/timeline": [Case(fixed("/v1/tasks/{task}/timeline"), GONE)],
    "GET /v1/tasks/{id}/logs": [
        Case(fixed("/v1/tasks/{task}/logs"), GONE),
        Case(fixed("/v1/tasks/{waiting}/logs?follow=1"), GONE, seconds=0.5),
    ],
    "POST /v1/tasks/{id}/cancel": [Case(fixed("/v1/tasks/{waiting}/cancel"), GONE, ends="task", at="waiting")],
    "POST /v1/tasks/{id}/retry": [Case(fixed("/v1/tasks/{task}/retry"), GONE)],
    "GET /v1/outcomes": [Case(fixed("/v1/outcomes?stream=zqmark-stream"), NOTHING, seconds=0.5)],
    "POST /v1/events": [
        Case(fixed("/v1/events"), frozenset((202,)), lambda _: {"type": "shared.other", "source": "/shared"})
    ],
    "GET /v1/events": [
        Case(fixed("/v1/events?limit=1000"), NOTHING),
        Case(fixed("/v1/events?limit=1000&rule=zqmark-rule&state=succeeded"), NOTHING),
        Case(fixed("/v1/events?endpoint={endpoint}"), FORBIDDEN_OR_GONE),
    ],
    "GET /v1/events/count": [
        Case(fixed("/v1/events/count?rule=zqmark-rule"), NOTHING),
        Case(fixed("/v1/events/count?endpoint={endpoint}"), FORBIDDEN_OR_GONE),
    ],
    "GET /v1/events/{offset}": [Case(fixed("/v1/events/{offset}"), NOTHING)],
    "GET /v1/events/{offset}/trace": [Case(fixed("/v1/events/{offset}/trace"), NOTHING)],
    "GET /v1/tasks/{id}/trace": [Case(fixed("/v1/tasks/{task}/trace"), GONE)],
    "GET /v1/tasks/{id}/rules/{name}": [Case(fixed("/v1/tasks/{task}/rules/zqmark-rule"), GONE)],
    "GET /v1/report": [
        Case(fixed("/v1/report?limit=1000"), NOTHING),
        Case(fixed("/v1/report?rule=zqmark-rule"), GONE),
    ],
    "GET /v1/triggers": [Case(fixed("/v1/triggers"), NOTHING)],
    "GET /v1/triggers/{name}": [Case(fixed("/v1/triggers/zqmark-files"), GONE)],
    "GET /v1/triggers/{name}/file": [Case(fixed("/v1/triggers/zqmark-files/file?path=zqmark-old.raw"), GONE)],
    "POST /v1/triggers/{name}/backfill": [
        Case(fixed("/v1/triggers/zqmark-files/backfill"), GONE, lambda _: {"dry_run": True})
    ],
    "GET /v1/live": [Case(fixed("/v1/live"), NOTHING, seconds=0.5)],
    "GET /v1/dead": [Case(fixed("/v1/dead?all=1&limit=1000"), NOTHING)],
    "GET /v1/dead/{id}": [Case(fixed("/v1/dead/{dead}"), GONE)],
    "POST /v1/dead/{id}/retry": [Case(fixed("/v1/dead/{dead}/retry"), GONE, ends="dead", at="dead")],
    "POST /v1/dead/dismiss": [
        Case(fixed("/v1/dead/dismiss"), GONE, lambda w: {"letters": [int(w.ids["dead"])]}, ends="dead", at="dead"),
        Case(fixed("/v1/dead/dismiss"), NOTHING, lambda _: {"all": True}),
    ],
    "POST /v1/rules": [Case(fixed("/v1/rules"), frozenset((403, 404, 409, 422)), _deploy)],
    "GET /v1/rules": [Case(fixed("/v1/rules"), NOTHING)],
    "GET /v1/rules/{name}": [Case(fixed("/v1/rules/zqmark-rule"), GONE)],
    "POST /v1/rules/{name}/enable": [Case(fixed("/v1/rules/zqmark-rule/enable"), GONE)],
    "POST /v1/rules/{name}/disable": [
        Case(fixed("/v1/rules/zqmark-rule/disable"), GONE, ends="label", at="zqmark-rule")
    ],
    "POST /v1/deployments/{label}/simulate": [
        Case(fixed("/v1/deployments/zqmark/simulate"), NOTHING, lambda _: {"text": "rules: []"})
    ],
    "POST /v1/rules/{name}/replay": [
        Case(fixed("/v1/rules/zqmark-rule/replay"), GONE, lambda _: {"name": "again", "dry_run": True})
    ],
    "POST /v1/rules/{name}/explain": [
        Case(fixed("/v1/rules/zqmark-rule/explain"), GONE, lambda w: {"offset": int(w.ids["offset"])}),
        Case(fixed("/v1/rules/zqmark-rule/explain"), GONE, lambda _: {"event": {"type": "shared.type"}}),
    ],
    "GET /v1/deployments/{label}": [Case(fixed("/v1/deployments/zqmark-label"), GONE)],
    "POST /v1/deployments/{label}/rollback": [
        Case(
            fixed("/v1/deployments/zqmark-label/rollback"),
            FORBIDDEN_OR_GONE,
            lambda _: {"version": 1},
            ends="label",
            at="zqmark-label",
        )
    ],
    "DELETE /v1/deployments/{label}": [
        Case(fixed("/v1/deployments/zqmark-label"), FORBIDDEN_OR_GONE, ends="label", at="zqmark-label")
    ],
    "GET /v1/me": [Case(fixed("/v1/me"), NOTHING)],
    "POST /v1/functions": [Case(fixed("/v1/functions"), frozenset((422,)), lambda _: {"name": "f", "body": "AAAA"})],
    "GET /v1/functions": [Case(fixed("/v1/functions?limit=1000"), NOTHING)],
    "GET /v1/functions/{name}": [
        Case(fixed("/v1/functions/{function}"), GONE),
        Case(fixed("/v1/functions/zqmark_fn"), GONE),
        Case(fixed("/v1/functions/zqmark_fn@1"), GONE),
    ],
    "POST /v1/endpoints": [
        # The owner's key under a name of the stranger's; its own is refused as well, since that is live.
        Case(fixed("/v1/endpoints"), frozenset((409,)), lambda _: {"name": "other", "public_key": "i" * 40})
    ],
    "GET /v1/endpoints": [Case(fixed("/v1/endpoints"), NOTHING)],
    "GET /v1/endpoints/{name}": [
        Case(fixed("/v1/endpoints/zqmark-ep"), GONE),
        Case(fixed("/v1/endpoints/{endpoint}"), FORBIDDEN_OR_GONE),
    ],
    "DELETE /v1/endpoints/{name}": [
        Case(fixed("/v1/endpoints/zqmark-idle"), GONE, ends="endpoint", at="zqmark-idle"),
        Case(fixed("/v1/endpoints/{endpoint}"), FORBIDDEN_OR_GONE, ends="endpoint", at="endpoint"),
    ],
    "POST /v1/tokens": [
        Case(fixed("/v1/tokens"), frozenset((403,)), lambda _: {"name": "x", "scopes": ["user"], "subject": OWNER})
    ],
    "GET /v1/tokens": [Case(fixed("/v1/tokens"), NOTHING)],
    "DELETE /v1/tokens/{id}": [Case(fixed("/v1/tokens/{token}"), GONE, ends="token", at="token")],
    "PUT /v1/blobs/{sha256}": [
        Case(
            lambda _: "/v1/blobs/" + hashlib.sha256(b"other").hexdigest(), frozenset((201,)), lambda _: b"other"
        )  # content is named by its hash: the same for everybody
    ],
    "POST /v1/blobs/missing": [
        Case(fixed("/v1/blobs/missing"), frozenset((200,)), lambda _: {"sha256": ["0" * 64]})  # as for GET
    ],
    # Who knows the hash of 256 bits has the content, or was given it.
    "GET /v1/blobs/{sha256}": [Case(fixed("/v1/blobs/" + "0" * 64), frozenset((404, 410)))],
    "GET /v1/view": [Case(fixed("/v1/view"), frozenset((403,)))],
}
#: Routes without a scope: the status without a token.
OPEN = {
    "POST /hooks/{trigger}": ("/hooks/zqmark-hook", 401),
    "OPTIONS /hooks/{trigger}": ("/hooks/zqmark-hook", 200),
    "GET /health/live": ("/health/live", 200),
    "GET /health/ready": ("/health/ready", 200),
    "GET /metrics": ("/metrics", 401),
    "GET /openapi.json": ("/openapi.json", 200),
    "GET /v1/schemas/rules": ("/v1/schemas/rules", 200),
    "GET /docs": ("/docs", 200),
    "GET /": ("/", 200),
    "GET /page/{file}": ("/page/index.html", 200),
}
#: Statuses of the rightful one that are no success, and why.
OWN = {
    "POST /v1/functions": {422},  # the body is none
    "POST /v1/endpoints": {409},  # the key is another endpoint's of the same owner
    "GET /v1/blobs/{sha256}": {404, 410},  # there is none of this name
    "POST /v1/rules": {200, 422},  # of an admin who is not the owner
}


def key(route: Route) -> str:
    return f"{route.method} {route.template}"


def test_every_route_has_its_case() -> None:
    assert {key(r) for r in ROUTES if r.scope} == set(CASES)
    assert {key(r) for r in ROUTES if not r.scope} == set(OPEN)


SCOPED = [route for route in ROUTES if route.scope]


def ask(world: World, route: Route, case: Case, token: str | None) -> tuple[Reply, str, Any]:
    path, body = case.path(world), case.body(world)
    reply = world.send(route.method, path, body, token=token, seconds=case.seconds)
    return reply, path, body


@pytest.mark.parametrize("route", SCOPED, ids=key)
def test_who_is_not_known_is_refused(world: World, route: Route) -> None:
    agent_key = world.tokens[OWNER, "agent"]
    unknown = {
        "none": None,
        "garbage": "garbage",
        "well formed": "oncue_" + "x" * 43,
        "expired": world.tokens[OWNER, "expired"],
        "revoked": world.tokens[OWNER, "revoked"],
        "an agent's key": agent_key,
        "an agent's key as a token": "oncue_" + agent_key[:43],
    }
    world.system.await_true(
        lambda: world.send("GET", "/v1/me", token=unknown["expired"]).status == 401, "the token has expired"
    )
    before = world.state()

    for case in CASES[key(route)]:
        for who, token in unknown.items():
            reply, path, body = ask(world, route, case, token)
            assert reply.status == 401, (who, path, reply)
            assert b"WWW-Authenticate" in reply.head, (who, path, reply)
            assert not world.leaks(reply, path, body), (who, path, reply)

    assert world.state() == before


@pytest.mark.parametrize("route", SCOPED, ids=key)
def test_a_scope_that_is_not_enough_is_forbidden(world: World, route: Route) -> None:
    before = world.state()

    for case in CASES[key(route)]:
        for (subject, scope), token in world.tokens.items():
            if scope in SCOPES and scope not in OPENS[route.scope]:
                reply, path, body = ask(world, route, case, token)
                assert reply.status == 403, (subject, scope, path, reply)
                assert not world.leaks(reply, path, body), (subject, scope, path, reply)

    assert world.state() == before


@pytest.mark.parametrize("route", SCOPED, ids=key)
def test_what_is_anothers_does_not_exist(world: World, route: Route) -> None:
    """Somebody else with the right scope gets the answer that is given for a name that nobody has."""
    before = world.state()

    for case in CASES[key(route)]:
        for scope in sorted(OPENS[route.scope] - {"admin"}):
            reply, path, body = ask(world, route, case, world.tokens[STRANGER, scope])
            assert reply.status in case.stranger, (scope, path, reply)
            assert not world.leaks(reply, path, body), (scope, path, reply)

    assert world.state() == before


NAMES = re.compile(r"zqmark[\w-]*|ep_[0-9a-f]+|tok_[0-9a-f]+|[0-9a-f]{32,64}|(?<=/dead/)\d+")


@pytest.mark.parametrize("route", [r for r in SCOPED if r.parameters], ids=key)
def test_a_name_that_nobody_has_gives_the_same_answer(world: World, route: Route) -> None:
    for case in CASES[key(route)]:
        if case.stranger not in (GONE, FORBIDDEN_OR_GONE):
            continue
        scope = "user" if "user" in OPENS[route.scope] else "read"
        token, body = world.tokens[STRANGER, scope], case.body(world)
        path = case.path(world)

        def unknown(found: re.Match[str]) -> str:
            text = found[0]
            if text.isdecimal():
                return "9" * 9
            kept = text[:4] if text.startswith(("ep_", "tok_")) else ""
            return kept + ("f" if re.fullmatch("[0-9a-f]+", text[len(kept) :]) else "q") * (len(text) - len(kept))

        other = NAMES.sub(unknown, path)
        assert other != path

        anothers = world.send(route.method, path, body, token=token, seconds=case.seconds)
        nobodys = world.send(route.method, other, body, token=token, seconds=case.seconds)

        assert anothers.status == nobodys.status, (path, anothers, nobodys)
        assert _without_names(anothers.body) == _without_names(nobodys.body), path


def _without_names(body: bytes) -> str:
    return re.sub(r"zqmark[\w-]*|q{6,}|f{8,}|[0-9a-f]{8,}|\b\d+\b|(ep|tok)_\w+", "NAME", body.decode())


@pytest.mark.parametrize("route", SCOPED, ids=key)
def test_who_may_is_answered(world: World, route: Route) -> None:
    for case in CASES[key(route)]:
        for subject, scope in ((OWNER, "user"), (OWNER, "read"), (OWNER, "emit"), (STRANGER, "admin")):
            if scope not in OPENS[route.scope]:
                continue
            path, body = case.path(world), case.body(world)
            if case.ends:
                path, body = _on(world.fresh(case.ends), world.ids.get(case.at, case.at), path, body)

            reply = world.send(route.method, path, body, token=world.tokens[subject, scope], seconds=case.seconds)

            wanted = OWN.get(key(route), {route.status})
            if scope == "admin" and route.template in (
                "/v1/tasks",
                "/v1/tasks/batch",
                "/v1/tokens",
                "/v1/functions/{name}",
            ):
                wanted = wanted | {201, 202, 404}  # the owner's function has no name of the admin's
            assert reply.status in wanted, (subject, scope, path, reply)


def _on(fresh: str, name: str, path: str, body: Any) -> tuple[str, Any]:
    """Put another object in the fixed one's place."""
    if isinstance(body, dict):
        swap = {name: fresh, int(name) if name.isdecimal() else name: int(fresh) if fresh.isdecimal() else fresh}
        body = {k: [swap.get(i, i) for i in v] if isinstance(v, list) else swap.get(v, v) for k, v in body.items()}
    return re.sub(rf"(?<=/){re.escape(name)}\b", fresh, path), body


@pytest.mark.parametrize("route", [r for r in ROUTES if not r.scope], ids=key)
def test_what_is_open_shows_nothing(world: World, route: Route) -> None:
    path, status = OPEN[key(route)]
    before = world.state()

    for token in (None, "garbage", world.tokens[OWNER, "revoked"], world.tokens[STRANGER, "emit"]):
        reply = world.send(route.method, path, b"{}" if route.method == "POST" else None, token=token)
        assert reply.status == status or (token and reply.status in (401, 403) and status == 401), (path, reply)
        assert not world.leaks(reply, path), (path, reply)

    assert world.state() == before


def test_the_blob_of_another_is_not_guessed(world: World) -> None:
    """Its name is the SHA-256 of its content: near misses find nothing, and nothing lists blobs."""
    name = world.ids["blob"]
    near = name[:-1] + ("0" if name[-1] != "0" else "1")
    token = world.tokens[STRANGER, "user"]

    for path in (f"/v1/blobs/{near}", f"/v1/blobs/{name[:32]}", f"/v1/blobs/{name.upper()}", "/v1/blobs/", "/v1/blobs"):
        reply = world.send("GET", path, token=token)
        assert reply.status in (404, 405, 410, 422), (path, reply)
        assert CONTENT[:20] not in reply.body


def test_live_events_of_another_are_not_streamed(world: World) -> None:
    """While the owner's tasks run, somebody else's live stream says nothing of them."""

    def work() -> None:
        world.made("POST", "/v1/tasks", call() | {"wait_ms": 20_000})
        world.fresh("label")

    worker = threading.Thread(target=work)
    worker.start()
    strangers = world.send("GET", "/v1/live", token=world.tokens[STRANGER, "user"], seconds=3)
    worker.join()

    assert strangers.status == 200
    assert not world.leaks(strangers)
