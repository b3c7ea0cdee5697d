"""Requests that the API refuses: the exact status, code and remedy."""

# ruff: noqa: E501  (a table: a case a line)

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from typing import Any

import msgspec
import pytest

from oncue.errors import DiskFull, RuleFileError
from tests.unit.dispatcher.http.api_backend import Client, with_server

J = {"Content-Type": "application/json"}
M = {"Content-Type": "application/msgpack"}
ID = "0" * 32
GOOD = b'{"function": "f"}'

# (what, method, path, headers, body) -> (status, code, part of detail, part of remedy)
TABLE: list[tuple[str, str, str, dict[str, str], bytes | None, tuple[int, str, str, str]]] = [
    ("not json", "POST", "/v1/tasks", J, b"{", (400, "malformed", "truncated", "JSON value in UTF-8")),
    ("empty", "POST", "/v1/tasks", J, b"", (400, "malformed", "it is empty", "JSON value")),
    ("two values", "POST", "/v1/tasks", J, GOOD + b" 1", (400, "malformed", "trailing", "one JSON value")),
    ("not utf-8", "POST", "/v1/tasks", J, b'{"function": "\xff"}', (400, "malformed", "utf-8", "UTF-8")),
    ("too deep", "POST", "/v1/tasks", J, b'{"args":' + b"[" * 100_000, (400, "malformed", "deeply", "flatter")),
    ("a list", "POST", "/v1/tasks", J, b"[]", (422, "invalid", "Expected `object`, got `array`", "TaskRequest")),
    ("no function", "POST", "/v1/tasks", J, b"{}", (422, "invalid", "required field `function`", "add `function`")),
    ("misspelt", "POST", "/v1/tasks", J, b'{"funktion": "f"}', (422, "invalid", "`funktion`", "`function`")),
    (
        "misspelt inside",
        "POST",
        "/v1/tasks",
        J,
        b'{"function": "f", "retry": {"backof": "x"}}',
        (422, "invalid", "`backof` - at `$.retry`", "did you mean `backoff`?"),
    ),
    (
        "misspelt in a list",
        "POST",
        "/v1/rules",
        J,
        b'{"files": [{"label": "a", "txt": ""}]}',
        (422, "invalid", "`txt` - at `$.files[0]`", "did you mean `text`?"),
    ),
    (
        "far off",
        "POST",
        "/v1/endpoints",
        J,
        b'{"zzz": 1}',
        (422, "invalid", "`zzz`", "it takes: name, public_key, lost_after_ms, labels"),
    ),
    ("wrong type", "POST", "/v1/tasks", J, b'{"function": 1}', (422, "invalid", "at `$.function`", "TaskRequest")),
    ("below 0", "POST", "/v1/tasks", J, b'{"function":"f","timeout_ms":-1}', (422, "invalid", "below 0 - at `$.timeout_ms`", "leave it out")),
    ("no time", "POST", "/v1/tasks", J, b'{"function":"f","timeout_ms":0}', (422, "invalid", "timeout_ms is 0 - at `$.timeout_ms`", "leave it out for no limit")),
    ("no time to start", "POST", "/v1/tasks/batch", J, b'{"function":"f","payloads":["bQ=="],"expires_ms":0}', (422, "invalid", "expires_ms is 0", "leave it out for no limit")),
    ("for ever", "POST", "/v1/tasks", J, b'{"function":"f","expires_ms":1180591620717411303424}', (422, "invalid", "too large - at `$.expires_ms`", "1 to")),
    ("many retries", "POST", "/v1/tasks", J, b'{"function":"f","retry":{"max":99999999999999}}', (422, "invalid", "`$.retry.max`", "0 to")),
    ("never lost", "POST", "/v1/endpoints", J, b'{"name":"a","public_key":"k","lost_after_ms":-1}', (422, "invalid", "`$.lost_after_ms`", "0 to")),
    ("old token", "POST", "/v1/tokens", J, b'{"name":"a","expires_s":99999999999999}', (422, "invalid", "`$.expires_s`", "0 for never")),
    ("far offset", "POST", "/v1/rules/a/explain", J, b'{"offset":99999999999999999999}', (422, "invalid", "`$.offset`", "Explain")),
    ("no endpoint", "POST", "/v1/tasks", J, b'{"function":"missing"}', (404, "not-found", "missing", "register")),
    ("form", "POST", "/v1/tasks", {"Content-Type": "application/x-www-form-urlencoded"}, b"a=b", (415, "unsupported-type", "x-www-form", "application/json")),
    ("latin", "POST", "/v1/tasks", {"Content-Type": "application/json; charset=latin-1"}, GOOD, (415, "unsupported-type", "latin-1", "UTF-8")),
    ("msgpack where json", "POST", "/v1/tasks", M, b"\x80", (415, "unsupported-type", "msgpack", "application/json")),
    ("bad msgpack", "POST", "/v1/tasks/batch", M, b"\xc1", (400, "malformed", "msgpack", "one msgpack value")),
    ("bad base64", "POST", "/v1/tasks/batch", J, b'{"function":"f","payloads":["!"]}', (422, "invalid", "base64 encoded string - at `$.payloads[0]`", "BatchRequest")),
    ("nothing", "POST", "/v1/tasks/batch", J, GOOD, (422, "invalid", "neither `payloads` nor `calls`", "give one")),
    ("both", "POST", "/v1/tasks/batch", J, b'{"function":"f","payloads":["bQ=="],"calls":[[[],{}]]}', (422, "invalid", "both", "give one")),
    ("bad key", "POST", "/v1/tasks/batch", J, b'{"function":"f","payloads":["bQ=="],"key":"x"}', (422, "invalid", "`$.key`", "UUIDv7")),
    ("empty payload", "POST", "/v1/tasks/batch", J, b'{"function":"f","payloads":["bQ==",""]}', (422, "invalid", "`$.payloads[1]` is empty", "letter")),
    ("bad id", "GET", "/v1/tasks/xyz", {}, None, (422, "invalid", "'xyz' is not an id", "32 hex digits")),
    ("not ascii id", "GET", "/v1/tasks/%D9%A1" + "0" * 31, {}, None, (422, "invalid", "is not an id", "32 hex digits")),
    ("unknown id", "GET", f"/v1/tasks/{ID}", {}, None, (404, "not-found", ID, "lists yours")),
    ("unknown id's log", "GET", f"/v1/tasks/{ID}/logs", {}, None, (404, "not-found", ID, "lists yours")),
    ("bad id in a list", "POST", "/v1/tasks/cancel", J, b'{"tasks":["00"]}', (422, "invalid", "`$.tasks[0]`", "hex")),
    ("short id", "POST", "/v1/tasks/outcomes", M, msgspec.msgpack.encode({"ids": [b"x"]}), (422, "invalid", "`$.ids[0]`", "OutcomesQuery")),
    ("bad cursor", "GET", "/v1/tasks?cursor=%00", {}, None, (422, "invalid", "not a cursor", "`next`")),
    ("bad limit", "GET", "/v1/tasks?limit=0", {}, None, (422, "invalid", "`$.limit`", "TasksQuery")),
    ("limit no number", "GET", "/v1/tasks?limit=x", {}, None, (422, "invalid", "`$.limit`", "TasksQuery")),
    ("unknown parameter", "GET", "/v1/tasks?stat=failed", {}, None, (422, "invalid", "`stat`", "did you mean `state`?")),
    ("parameter where none", "GET", "/v1/rules?a=1", {}, None, (422, "invalid", "`a`", "it takes: none")),
    ("twice", "GET", "/v1/tasks?state=open&state=closed", {}, None, (422, "invalid", "'state' is given twice", "once")),
    ("half an event", "GET", "/v1/tasks?event_id=1", {}, None, (422, "invalid", "together", "give both")),
    ("no stream", "GET", "/v1/outcomes", {}, None, (422, "invalid", "required field `stream`", "add `stream`")),
    ("live kinds", "GET", "/v1/live?kinds=tasks", {}, None, (422, "invalid", "'tasks'", "did you mean task?")),
    ("bad offset", "GET", "/v1/events/-1", {}, None, (422, "invalid", "'-1'", "digits")),
    ("event without type", "POST", "/v1/events", J, b'{"source":"/a"}', (422, "invalid", "`type`", "add `type`")),
    ("event misspelt", "POST", "/v1/events", J, b'{"typ":"a","source":"/a"}', (422, "invalid", "`typ`", "`type`")),
    ("event of xml", "POST", "/v1/events", {"Content-Type": "text/xml"}, b"<a/>", (415, "unsupported-type", "text/xml", "cloudevents")),
    ("event no time", "POST", "/v1/events", J, b'{"type":"a","source":"/a","time":"now"}', (422, "invalid", "time", "")),
    ("no files", "POST", "/v1/rules", J, b'{"files":[]}', (422, "invalid", "`$.files`", "at least one")),
    ("explain nothing", "POST", "/v1/rules/a/explain", J, b"{}", (422, "invalid", "neither", "give one of them")),
    ("explain both", "POST", "/v1/rules/a/explain", J, b'{"event":{},"offset":1}', (422, "invalid", "both", "give one")),
    ("version 0", "POST", "/v1/deployments/a/rollback", J, b'{"version":0}', (422, "invalid", "`$.version`", "Rollback")),
    ("bad hash", "PUT", "/v1/blobs/ABC", {}, b"x", (422, "invalid", "'ABC' is not a SHA-256", "64 hex digits")),
    ("wrong hash", "PUT", f"/v1/blobs/{'0' * 64}", {}, b"x", (422, "invalid", "another hash", "again")),
    ("no blob", "GET", f"/v1/blobs/{'0' * 64}", {}, None, (410, "blob-missing", "not here", "again")),
    ("scope", "POST", "/v1/tokens", J, b'{"name":"a","scopes":["root"]}', (422, "invalid", "'root'", "admin, user")),
    ("more scopes than its own", "POST", "/v1/tokens", J, b'{"name":"a","scopes":["admin"]}', (403, "forbidden", "admin", "leave")),
    ("for others", "POST", "/v1/tokens", J, b'{"name":"a","subject":"bob"}', (403, "forbidden", "somebody", "leave")),
    ("no such path", "GET", "/v1/task", {}, None, (404, "not-found", "/v1/task", "did you mean /v1/tasks?")),
    ("slash", "GET", "/v1/tasks/", {}, None, (404, "not-found", "/v1/tasks/", "/v1/tasks")),
    ("root", "GET", "/zzzzzz", {}, None, (404, "not-found", "/zzzzzz", "/docs")),
    ("method", "DELETE", "/v1/tasks", {}, None, (405, "method-not-allowed", "/v1/tasks", "GET or HEAD or POST")),
    ("hook by GET", "GET", "/hooks/daq", {}, None, (405, "method-not-allowed", "/hooks/{trigger}", "POST")),
    ("no hook", "POST", "/hooks/nobody", {}, b"x", (404, "not-found", "'nobody'", "deploy")),
    ("page file", "GET", "/page/..%2Fapi.py", {}, None, (404, "not-found", "api.py", "/docs")),
    ("position", "GET", "/v1/rules", {"Oncue-Position": "x"}, None, (422, "invalid", "'x'", "send back")),
    ("keys differ", "POST", "/v1/tasks", J | {"Idempotency-Key": "a"}, b'{"function":"f","key":"b"}', (422, "invalid", "differ", "one")),
    ("long key", "POST", "/v1/tasks", J | {"Idempotency-Key": "a" * 300}, GOOD, (422, "invalid", "300", "UUID")),
    ("bad gzip", "POST", "/v1/tasks", J | {"Content-Encoding": "gzip"}, b"no gzip", (400, "malformed", "cannot be read", "Content-Encoding")),
]  # fmt: skip


def test_table() -> None:
    async def test(c: Client) -> None:
        for what, method, path, headers, body, (status, code, detail, remedy) in TABLE:
            found, problem, answered = await c.ask(method, path, headers=headers, data=body)
            assert (found, problem.get("code")) == (status, code), (what, found, problem)
            assert detail.lower() in problem["detail"].lower(), (what, problem)
            assert problem["remedy"], what
            assert remedy in problem["remedy"], (what, problem)
            assert problem["status"] == status
            assert problem["type"] == f"urn:oncue:error:{code}"
            assert problem["title"]
            assert answered["Content-Type"] == "application/problem+json"

    with_server(test)


def test_allow_header_of_a_wrong_method() -> None:
    async def test(c: Client) -> None:
        _, _, headers = await c.ask("PATCH", f"/v1/tasks/{ID}")
        assert headers["Allow"] == "GET, HEAD"
        _, _, headers = await c.ask("PATCH", f"/v1/blobs/{'0' * 64}")
        assert headers["Allow"] == "GET, PUT"

    with_server(test)


def test_too_large() -> None:
    async def test(c: Client) -> None:
        big = b'{"function": "' + b"x" * 5000 + b'"}'
        for headers in (J, J | {"Content-Encoding": "gzip"}):
            body = gzip.compress(big) if len(headers) > 1 else big
            status, problem, _ = await c.ask("POST", "/v1/tasks", headers=headers, data=body)
            assert (status, problem["code"]) == (413, "too-large")
            assert problem["details"]["limit_bytes"] == 4000
            assert "4,000" in problem["detail"]
            assert "max_body_bytes" in problem["remedy"]

        async def chunks() -> Any:
            for _ in range(10):
                yield big

        status, problem, _ = await c.ask("POST", "/v1/tasks", headers=J, data=chunks())
        assert (status, problem["code"]) == (413, "too-large")
        status, problem, _ = await c.ask("POST", "/hooks/daq", data=big)
        assert status == 413
        status, _, _ = await c.ask("GET", "/v1/me")
        assert status == 200

    with_server(test, max_body_bytes=4000)


def test_a_hook_has_a_limit_of_its_own() -> None:
    async def test(c: Client) -> None:
        status, problem, _ = await c.ask("POST", "/hooks/daq", data=b"x" * (4 * 1024 * 1024 + 1))
        assert (status, problem["code"], problem["details"]["limit_bytes"]) == (413, "too-large", 4 * 1024 * 1024)
        assert "fixed" in problem["remedy"]
        assert "max_body_bytes" not in problem["remedy"]

    with_server(test)


def test_a_client_that_disconnects_leaves_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def test(c: Client) -> None:
        for start in (
            b"POST /hooks/daq HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n\r\nabc",
            b"\x16\x03\x01\r\n\r\n",
        ):
            _, writer = await asyncio.open_connection("127.0.0.1", c.serving.port)
            writer.write(start)
            await writer.drain()
            await asyncio.sleep(0.1)
            writer.transport.abort()
        await asyncio.sleep(0.1)
        assert (await c.ask("GET", "/v1/me"))[0] == 200

    with_server(test)
    assert [r for r in caplog.records if r.levelno > logging.DEBUG] == []
    logging.getLogger("aiohttp.server").error("ours", exc_info=ValueError("x"))
    assert [r.message for r in caplog.records if r.levelno > logging.DEBUG] == ["ours"]


def test_batch_limits() -> None:
    async def test(c: Client) -> None:
        body = msgspec.msgpack.encode({"function": "f", "payloads": [b"m\xc0"] * 11})
        status, problem, _ = await c.ask("POST", "/v1/tasks/batch", headers=M, data=body)
        assert (status, problem["code"], problem["details"]["limit"]) == (413, "too-large", 10)
        body = msgspec.msgpack.encode({"function": "f", "payloads": [b"m", b"m" * (256 * 1024 + 1)]})
        status, problem, _ = await c.ask("POST", "/v1/tasks/batch", headers=M, data=body)
        assert (status, problem["code"]) == (413, "too-large")
        assert "$.payloads[1]" in problem["detail"]
        assert "/v1/blobs" in problem["remedy"]
        event = json.dumps({"type": "a", "source": "/a", "data": "x" * (1 << 20)}).encode()
        status, problem, _ = await c.ask("POST", "/v1/events", headers=J, data=event)
        assert (status, problem["code"]) == (413, "too-large")
        assert not c.backend.batches
        assert not c.backend.emitted

    with_server(test, max_batch=10)


def test_unexpected_error_is_an_incident(caplog: pytest.LogCaptureFixture) -> None:
    async def test(c: Client) -> None:
        c.backend.fail = ZeroDivisionError("secret detail")
        with caplog.at_level(logging.ERROR, "oncue.api"):
            status, problem, _ = await c.ask("GET", "/v1/triggers")
        assert (status, problem["code"]) == (500, "internal")
        incident = problem["details"]["incident"]
        assert incident in problem["detail"]
        assert incident in problem["remedy"]
        assert "secret" not in json.dumps(problem)
        assert "Traceback" not in json.dumps(problem)
        assert incident in caplog.text
        assert "ZeroDivisionError: secret detail" in caplog.text

    with_server(test)


def test_errors_with_details_and_odd_text() -> None:
    async def test(c: Client) -> None:
        c.backend.fail = RuleFileError("no \udcff", remedy="mend \udcfe", file="a.yaml", line=3, column=7)
        status, problem, _ = await c.ask("GET", "/v1/triggers")
        assert (status, problem["code"], problem["detail"]) == (422, "rule-file", "no \\udcff")
        c.backend.fail = RuleFileError("no", remedy="mend", file="a.yaml", line=3, column=7)
        _, problem, _ = await c.ask("GET", "/v1/triggers")
        assert problem["details"] == {"file": "a.yaml", "line": 3, "column": 7}
        c.backend.fail = DiskFull("full", remedy="free some")
        status, problem, headers = await c.ask("GET", "/v1/triggers")
        assert (status, problem["code"], headers["Retry-After"]) == (507, "disk-full", "5")

    with_server(test)


def test_raw_bytes_never_hang_or_crash_the_server() -> None:
    """Invalid or truncated HTTP affects its own connection only."""

    async def test(c: Client) -> None:
        for raw in (
            b"\x00\xff\xfe\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"POST /v1/tasks HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
            b"POST /v1/tasks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
            b"GET /v1/tasks/%ff%fe HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            b"GET /v1/tasks?a=%ff HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            b"GET /v1/me HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer oncue_\xff\r\nConnection: close\r\n\r\n",
        ):
            reader, writer = await asyncio.open_connection(c.serving.host, c.serving.port)
            writer.write(raw)
            answer = await reader.read(65536)
            writer.close()
            await writer.wait_closed()
            assert not answer.startswith(b"HTTP/1.1 5"), (raw, answer)
            assert b"Traceback" not in answer
        assert (await c.ask("GET", "/v1/me"))[0] == 200

    with_server(test)
