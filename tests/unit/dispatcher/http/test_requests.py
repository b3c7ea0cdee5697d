"""Accepted requests of the API and their answers."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import pytest

from oncue import ids
from oncue.config import Settings
from oncue.dispatcher.auth.tokens import hash_token
from oncue.dispatcher.http.app import make_app, serve
from oncue.dispatcher.http.batch_body import BatchDecoder
from oncue.dispatcher.http.rate_limit import RateLimit
from oncue.dispatcher.http.route import MSGPACK
from oncue.dispatcher.metrics.metrics import Metrics
from oncue.errors import Conflict, RateLimited
from oncue.protocol.api import BatchRequest
from oncue.protocol.codec import encode
from oncue.protocol.records import ERROR, Failure
from tests.unit.dispatcher.http.api_backend import TOKENS, Client, packed, with_server

M = {"Content-Type": "application/msgpack"}
ID = "0" * 32

# ---------------------------------------------------------------- tokens


def test_callers_without_a_valid_token_are_refused() -> None:
    async def test(c: Client) -> None:
        async def refused(**headers: str) -> tuple[str, str]:
            status, problem, answered = await c.ask("GET", "/v1/me", token="", headers=headers)
            assert (status, problem["code"]) == (401, "unauthorized")
            assert "token" in problem["remedy"]
            return problem["detail"], answered["WWW-Authenticate"]

        assert await refused() == ("this needs a token", 'Bearer realm="oncue"')
        for header, why in (
            ("Basic abc", "Bearer"),
            ("Bearer", "not an oncue token"),
            ("Bearer oncue_" + "x" * 500, "not an oncue token"),
            ("Bearer oncue_nobody", "not known"),
        ):
            detail, challenge = await refused(Authorization=header)
            assert why in detail
            assert challenge == 'Bearer realm="oncue", error="invalid_token"'

        digest = hash_token(TOKENS["user"])
        record = c.backend.records[digest]
        assert (await c.ask("GET", "/v1/me"))[0] == 200
        c.backend.records[digest] = msgspec.structs.replace(record, revoked=True)
        assert "revoked" in (await refused(Authorization="Bearer " + TOKENS["user"]))[0]
        c.backend.records[digest] = msgspec.structs.replace(record, expires_us=time.time_ns() // 1000 - 1)
        assert "expired" in (await refused(Authorization="Bearer " + TOKENS["user"]))[0]
        c.backend.records[digest] = msgspec.structs.replace(record, scopes=("read",))
        assert (await c.ask("GET", "/v1/me"))[1]["scopes"] == ["read"]

    with_server(test)


def test_scopes() -> None:
    table = {  # scopes and the requests that need them
        ("GET", "/v1/tasks"): {"admin", "user", "read"},
        ("GET", "/v1/me"): {"admin", "user", "read", "emit"},
        ("POST", "/v1/events"): {"admin", "user", "emit"},
        ("POST", "/v1/tasks"): {"admin", "user"},
        ("POST", "/v1/rules/a/disable"): {"admin", "user"},
        ("DELETE", "/v1/endpoints/a"): {"admin", "user"},
        ("PUT", f"/v1/blobs/{'0' * 64}"): {"admin", "user"},
    }

    async def test(c: Client) -> None:
        for (method, path), allowed in table.items():
            for token in TOKENS:
                status, problem, headers = await c.ask(method, path, token=token)
                assert (status != 403) == (token in allowed), (method, path, token, status)
                if status == 403:
                    assert problem["code"] == "forbidden"
                    assert problem["remedy"]
                    assert "insufficient_scope" in headers["WWW-Authenticate"]

    with_server(test)


def test_rate_limit() -> None:
    async def test(c: Client) -> None:
        assert (await c.ask("GET", "/v1/me"))[0] == 200
        status, problem, headers = await c.ask("GET", "/v1/me")
        assert (status, problem["code"]) == (429, "rate-limited")
        assert int(headers["Retry-After"]) >= 1
        assert problem["details"]["retry_after_s"] == int(headers["Retry-After"])
        assert (await c.ask("GET", "/v1/me", token="admin"))[0] == 200  # others are not harmed
        assert (await c.ask("GET", "/health/live", token=""))[0] == 200

    with_server(test, rate_per_s=0.01)


def test_rate_limit_refills_and_forgets() -> None:
    now = [0.0]
    limit = RateLimit(10, clock=lambda: now[0])
    for _ in range(20):
        limit.count("a")
    with pytest.raises(RateLimited) as caught:
        limit.count("a")
    assert caught.value.details["retry_after_s"] == 1
    now[0] += 0.1
    limit.count("a")
    with pytest.raises(RateLimited):
        limit.count("a")
    for n in range(20_000):
        limit.count(f"other {n}")
    assert len(limit._buckets) <= 10_001
    RateLimit(0).count("free")


# ---------------------------------------------------------------- tasks


def test_idempotency_key_in_header_or_body() -> None:
    async def test(c: Client) -> None:
        async def submit(body: dict[str, Any], **headers: str) -> Any:
            status, task, answered = await c.ask("POST", "/v1/tasks", json={"function": "f"} | body, headers=headers)
            assert status == 202
            assert answered["Oncue-Position"] == "tasks:7"
            return task["id"]

        first = await submit({}, **{"Idempotency-Key": "k1"})
        assert first == await submit({}, **{"Idempotency-Key": '"k1"'})
        assert first == await submit({"key": "k1"})
        assert first != await submit({"key": "k2"})
        assert await submit({}) != await submit({})

    with_server(test)


def test_batch_in_msgpack_and_json() -> None:
    async def test(c: Client) -> None:
        key, payloads = ids.new_uuid7(), [packed([[n], {}]) for n in range(1024)]
        body = {"function": "f", "payloads": payloads, "key": key.hex(), "stream": "s", "retry": {"max": 2}}
        for coding in ("application/msgpack", "application/x-msgpack"):
            sent = msgspec.msgpack.encode(body)
            status, found, headers = await c.ask("POST", "/v1/tasks/batch", data=sent, headers={"Content-Type": coding})
            assert (status, headers["Content-Type"]) == (202, "application/msgpack")
            expected = ids.batch_ids("ada", key, 1024)
            assert (found["first"], found["count"]) == (expected[0].hex(), 1024)
            assert headers["Oncue-Position"] == found["position"] == "tasks:9"
        request = c.backend.batches[-1]
        assert request.payloads == payloads
        assert (request.stream, request.retry.max if request.retry else None) == ("s", 2)

        sent_json = msgspec.json.encode(body)
        status, found, headers = await c.ask(
            "POST", "/v1/tasks/batch", data=sent_json, headers={"Content-Type": "application/json"}
        )
        assert (status, headers["Content-Type"], found["count"]) == (202, "application/json", 1024)
        assert c.backend.batches[-1].payloads == payloads
        status, found, _ = await c.ask(
            "POST", "/v1/tasks/batch", json={"function": "f", "calls": [[[1], {"a": 2}]] * 3}
        )
        assert (status, found["count"]) == (202, 3)
        assert c.backend.batches[-1].calls[0] == ([1], {"a": 2})

    with_server(test)


def test_outcomes_in_msgpack_and_json() -> None:
    async def test(c: Client) -> None:
        tasks = ids.batch_ids("ada", ids.new_uuid7(), 4)
        c.backend.close_task(tasks[0], packed({"n": 1}))
        c.backend.close_task(tasks[1], packed({1, 2}))  # a pickle: nobody runs it here
        failure = encode(Failure("ValueError", "no", "lines", "do"))
        c.backend.close_task(tasks[2], failure, ERROR, "failed")
        c.backend.close_task(tasks[3], b"m\xc1")
        body = msgspec.msgpack.encode({"ids": tasks, "wait_ms": 5})
        status, found, _ = await c.ask("POST", "/v1/tasks/outcomes", data=body, headers=M)
        assert status == 200
        assert [(o[0], o[1]) for o in found] == [(t, c.backend.ended[t].state) for t in tasks]
        assert found[0][2][5] == packed({"n": 1})
        status, shown, _ = await c.ask("POST", "/v1/tasks/outcomes", json={"ids": [t.hex() for t in tasks]})
        assert status == 200
        assert (shown[0]["value"], shown[0]["has_value"], shown[0]["output"]) == ({"n": 1}, True, "printed\ufffd")
        assert "pickled value" in shown[1]["value"]
        assert not shown[1]["has_value"]
        assert (shown[2]["state"], shown[2]["error"]["type"]) == ("failed", "ValueError")
        assert "cannot be read" in shown[3]["value"]

    with_server(test)


def test_lists_of_tasks() -> None:
    async def test(c: Client) -> None:
        await c.ask("POST", "/v1/tasks", json={"function": "f"})
        query = "state=open&endpoint=e&function=f&rule=r&event_source=%2Fa%20b&event_id=7&owner=o&since_us=3&cursor=c1&limit=2"
        status, page, _ = await c.ask("GET", f"/v1/tasks?{query}", token="read")
        assert (status, len(page["items"]), page["next"]) == (200, 1, "c1")
        q = c.backend.queries[-1]
        assert (q.state, q.event, q.since_us, q.limit, q.cursor) == ("open", ("/a b", "7"), 3, 2, "c1")

    with_server(test)


def test_task_ids_may_have_dashes() -> None:
    async def test(c: Client) -> None:
        _, task, _ = await c.ask("POST", "/v1/tasks", json={"function": "f"})
        t = task["id"]
        dashed = f"{t[:8]}-{t[8:12]}-{t[12:16]}-{t[16:20]}-{t[20:].upper()}"
        for path in (t, dashed):
            assert (await c.ask("GET", f"/v1/tasks/{path}"))[1]["id"] == t
        status, problem, _ = await c.ask("POST", f"/v1/tasks/{dashed}/retry")
        assert (status, problem["code"]) == (409, "conflict")
        one = {"count": 1, "tasks": [t], "next": None}
        assert (await c.ask("POST", "/v1/tasks/cancel", json={"tasks": [dashed]}))[:2] == (202, one)
        assert (await c.ask("POST", f"/v1/tasks/{dashed}/cancel"))[:2] == (202, one)

    with_server(test)


def test_read_your_writes() -> None:
    async def test(c: Client) -> None:
        _, _, headers = await c.ask("POST", "/v1/events", json={"type": "a", "source": "/a"})
        position = headers["Oncue-Position"]
        assert (await c.ask("GET", "/v1/events", headers={"Oncue-Position": position}))[0] == 200
        assert c.backend.waited == [position]
        # A request without the right is refused at once.
        assert (await c.ask("GET", "/v1/events", token="", headers={"Oncue-Position": position}))[0] == 401
        assert c.backend.waited == [position]

    with_server(test)


def test_a_batch_of_the_client_may_have_large_payloads() -> None:
    """The client writes all fields, `calls` too, and gathers 8 MiB."""
    payloads = [b"m" + encode(([], {"text": "x" * 20_000}))] * 400
    body = msgspec.msgpack.encode(BatchRequest(function="f", key=ids.new_uuid7().hex(), payloads=payloads))

    request = asyncio.run(BatchDecoder().read(body, MSGPACK))

    assert request.payloads == payloads
    assert request.calls == []


# ---------------------------------------------------------------- events, rules


@pytest.mark.parametrize(
    ("kind", "event", "remedy"),
    [
        ("application/json", [{}], "application/cloudevents-batch+json"),
        ("application/json", [], "application/cloudevents-batch+json"),
        ("application/json", {}, "application/cloudevents+json"),
        ("application/cloudevents+json", [{}], "application/cloudevents-batch+json"),
        ("application/cloudevents-batch+json", {}, "application/cloudevents+json"),
    ],
)
def test_events_under_another_content_type_are_told_their_own(kind: str, event: Any, remedy: str) -> None:
    whole = {"specversion": "1.0", "id": "1", "source": "/a", "type": "t", "data": {"n": 1}}
    body = b"\n" + msgspec.json.encode([whole | e for e in event] if isinstance(event, list) else whole | event)

    async def test(c: Client) -> None:
        status, found, _ = await c.ask("POST", "/v1/events", token="emit", data=body, headers={"Content-Type": kind})
        assert status == 422, found
        assert found["remedy"].endswith(f" {remedy}") or found["remedy"].endswith(f" as {remedy}"), found

    with_server(test)


def test_events_in_every_form() -> None:
    structured = {"specversion": "1.0", "id": "1", "source": "/a", "type": "t", "data": {"n": 1}}

    async def test(c: Client) -> None:
        async def emit(body: bytes, token: str = "emit", **headers: str) -> None:
            status, found, _ = await c.ask("POST", "/v1/events", token=token, data=body, headers=headers)
            assert (status, found["count"]) == (202, len(c.backend.emitted)), found

        kind = "Content-Type"
        await emit(msgspec.json.encode(structured), **{kind: "application/cloudevents+json"})
        assert (c.backend.emitted[0].id, c.backend.emitted[0].data) == ("1", {"n": 1})
        c.backend.emitted.clear()
        await emit(msgspec.json.encode([structured] * 3), **{kind: "application/cloudevents-batch+json"})
        c.backend.emitted.clear()
        binary = {"ce-specversion": "1.0", "ce-id": "b", "ce-source": "/a", "ce-type": "t", kind: "application/json"}
        await emit(b'{"n":2}', **binary)
        assert (c.backend.emitted[0].id, c.backend.emitted[0].data) == ("b", {"n": 2})
        c.backend.emitted.clear()
        await emit(b'{"type":"t","source":"/a","data":[1],"subject":"s"}', **{kind: "application/json"})
        plain = c.backend.emitted.pop()
        assert (plain.data, plain.subject, plain.datacontenttype) == ([1], "s", "application/json")
        for key in ("k1", "k1", "k2"):
            await emit(b'{"type":"t","source":"/a"}', **{kind: "application/json", "Idempotency-Key": key})
            structured[key] = c.backend.emitted.pop().id + structured.get(key, "")
        assert structured["k1"] == structured["k1"][:32] * 2
        assert structured["k2"] != structured["k1"][:32]
        assert plain.id not in (structured["k1"][:32], structured["k2"])

    with_server(test)


def test_rules() -> None:
    async def test(c: Client) -> None:
        files = {"files": [{"label": "b", "text": "rules: []"}]}
        assert (await c.ask("POST", "/v1/rules", json=files))[1][0]["label"] == "b"
        assert (await c.ask("POST", "/v1/rules/r/disable", json={"why": "beam is down"}))[0] == 200
        assert (await c.ask("POST", "/v1/rules/r/enable"))[0] == 200  # without a body
        assert c.backend.switched == [("r", False, "beam is down"), ("r", True, "")]
        assert (await c.ask("POST", "/v1/rules/r/explain", json={"offset": 3}))[1]["event"] == "3"
        status, found, _ = await c.ask("POST", "/v1/rules/r/explain", json={"event": {"type": "t", "data": {"a": 1}}})
        assert (status, found["event"]) == (200, "draft")
        event = c.backend.explained[-1][0]
        assert event is not None
        assert (event.type, event.data) == ("t", {"a": 1})
        assert (await c.ask("GET", "/v1/deployments/b"))[1][0]["version"] == 2
        assert (await c.ask("POST", "/v1/deployments/b/rollback", json={"version": 1}))[1]["version"] == 2
        assert (await c.ask("DELETE", "/v1/deployments/b"))[1]["version"] == 3

    with_server(test)


def test_names_with_slashes_and_escapes() -> None:
    async def test(c: Client) -> None:
        for name in ("tomo.py:reconstruct", "a/b/tomo.py:f@3", "ä %/x"):
            path = "/v1/functions/" + name.replace("%", "%25").replace(" ", "%20")
            assert (await c.ask("GET", path))[1]["name"] == name

    with_server(test)


def test_answers_without_content() -> None:
    async def test(c: Client) -> None:
        for method, path in (
            ("DELETE", "/v1/endpoints/e"),
            ("POST", "/v1/dead/1/retry"),
        ):
            assert (await c.ask(method, path))[:2] == (204, b"")

    with_server(test)


# ---------------------------------------------------------------- outside /v1


def test_hooks_have_their_own_checks() -> None:
    async def test(c: Client) -> None:
        status, body, headers = await c.ask("POST", "/hooks/daq", token="", data=b"\x00abc", headers={"X-Sign": "s"})
        assert (status, body, headers["X-Seen"]) == (202, b"cba\x00", "s")

    with_server(test)


def test_health() -> None:
    async def test(c: Client) -> None:
        assert (await c.ask("GET", "/health/live", token=""))[:2][0] == 200
        status, health, _ = await c.ask("GET", "/health/ready", token="")
        brief = {"log": "ok", "disk": "not ok", "triggers": "not ok: 1 of 2 do not run"}
        assert (status, health["checks"], health["triggers"]) == (200, brief, {})
        _, health, _ = await c.ask("GET", "/health/ready", token="read")
        assert health["triggers"] == {"secret": "/data/secret is missing"}
        assert health["checks"]["disk"] == "/data is 91 % full"
        c.backend.health_status = "starting"
        assert (await c.ask("GET", "/health/ready", token=""))[0] == 503
        assert (await c.ask("HEAD", "/health/ready", token=""))[:2] == (503, b"")

    with_server(test)


def test_metrics_need_a_token() -> None:
    async def test(c: Client) -> None:
        c.backend.metrics.accepted(1024)
        c.backend.metrics.outcomes({"succeeded": 1000, "failed": 24})
        for _ in range(3):
            await c.ask("GET", f"/v1/tasks/{ID}")
        assert (await c.ask("GET", "/metrics", token=""))[0] == 401
        assert (await c.ask("GET", "/metrics", token="emit"))[0] == 403
        status, text, headers = await c.ask("GET", "/metrics", token="read")
        assert status == 200
        assert headers["Content-Type"].startswith("text/plain")
        lines = text.decode().splitlines()
        for line in (
            "oncue_tasks_accepted_total 1024.0",
            'oncue_outcomes_total{state="failed"} 24.0',
            'oncue_http_requests_total{route="GET /v1/tasks/{id}",status="404"} 3.0',
            'oncue_http_requests_total{route="GET /metrics",status="401"} 1.0',
            "oncue_view_lag_records 5.0",
        ):
            assert line in lines

    with_server(test)


def test_open_metrics() -> None:
    async def test(c: Client) -> None:
        assert (await c.ask("GET", "/metrics", token=""))[0] == 200

    with_server(test, open_metrics=True)


def test_a_port_in_use() -> None:
    async def test(c: Client) -> None:
        settings = Settings(port=c.serving.port)
        with pytest.raises(Conflict, match="--port 0"):
            await serve(make_app(c.backend, settings, Metrics()), settings)

    with_server(test)


def test_the_previous_port_is_used_if_it_is_free() -> None:
    async def test(c: Client) -> None:
        settings = Settings(port=0)
        elsewhere = await serve(make_app(c.backend, settings, Metrics()), settings, c.serving.port)  # in use
        port = elsewhere.port
        assert port not in (0, c.serving.port)
        await elsewhere.close()
        again = await serve(make_app(c.backend, settings, Metrics()), settings, port)
        assert again.port == port
        await again.close()

    with_server(test)


def test_head_is_get_without_a_body() -> None:
    async def test(c: Client) -> None:
        status, body, headers = await c.ask("HEAD", "/v1/rules")
        assert (status, body) == (200, b"")
        assert int(headers["Content-Length"]) > 2

    with_server(test)
