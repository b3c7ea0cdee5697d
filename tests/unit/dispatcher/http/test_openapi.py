"""The OpenAPI document matches the server.

Every route is in it, every reference resolves, and requests built from it are accepted. The pages
cannot run data as script.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from oncue.dispatcher.http.openapi import document, document_json
from oncue.dispatcher.http.routes.server import CSP, FILES, page_file
from oncue.dispatcher.http.routes.table import ROUTES
from tests.unit.dispatcher.http.api_backend import Client, with_server

SPEC = document(ROUTES)
ID = "0" * 32


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def resolve(ref: str) -> Any:
    node: Any = SPEC
    for part in ref.removeprefix("#/").split("/"):
        node = node[part]
    return node


def test_it_has_exactly_the_routes_of_the_server() -> None:
    listed = {(m.upper(), path) for path, operations in SPEC["paths"].items() for m in operations}
    assert listed == {(r.method, r.template) for r in ROUTES}
    assert len(listed) == len(ROUTES)
    names = [op["operationId"] for operations in SPEC["paths"].values() for op in operations.values()]
    assert len(set(names)) == len(names)


def test_every_reference_resolves() -> None:
    found = set(references(SPEC))
    assert len(found) > 30
    for ref in found:
        assert isinstance(resolve(ref), dict)
    used = {ref.rpartition("/")[2] for ref in found}
    assert set(SPEC["components"]["schemas"]) - used <= {"Page"}
    assert msgspec.json.decode(document_json(ROUTES)) == msgspec.json.decode(msgspec.json.encode(SPEC))


def test_it_lists_scopes_and_errors() -> None:
    for route in ROUTES:
        op = SPEC["paths"][route.template][route.method.lower()]
        assert op["summary"]
        assert [p["name"] for p in op["parameters"] if p["in"] == "path"] == route.parameters
        assert bool(op["security"]) == bool(route.scope)
        assert {"401", "403", "429"} <= set(op["responses"]) or not route.scope or route.scope == "any"
        for error in route.errors:
            assert f"`{error.code}`" in op["responses"][str(error.status)]["description"]
    assert SPEC["paths"]["/v1/tasks"]["post"]["x-oncue-scopes"] == ["admin", "user"]
    query = {p["name"]: p for p in SPEC["paths"]["/v1/tasks"]["get"]["parameters"]}
    assert query["limit"]["schema"]["maximum"] == 1000
    assert query["limit"]["schema"]["default"] == 50


def example(schema: dict[str, Any], name: str = "") -> Any:
    """Return the smallest value that follows a schema."""
    if "$ref" in schema:
        return example(resolve(schema["$ref"]), name)
    if "anyOf" in schema:
        return example(schema["anyOf"][0], name)
    kind = schema.get("type")
    if kind == "object":
        return {n: example(schema["properties"][n], n) for n in schema.get("required", ())}
    if kind == "array":
        return [example(schema["items"], name)] if name in ("files", "ids", "tasks", "payloads", "calls") else []
    if kind == "integer":
        return max(schema.get("minimum", 0), 0)
    if "contentEncoding" in schema:
        return bytes(16)  # base64 in JSON
    if kind == "string":
        return ID if name in ("ids", "tasks") else "x"
    return None


#: Beyond a schema: one of several fields is required.
MORE = {
    "/v1/tasks/batch": {"calls": [[[], {}]]},
    "/v1/rules/{name}/explain": {"offset": 1},
}
#: References that must exist, or hashes that must match: their handler refuses them, not the decoder.
ELSE = {
    "/v1/blobs/{sha256}": {410, 422},
    "/v1/view": {403},
    "/hooks/{trigger}": {404},
    "/page/{file}": {404},
    "/metrics": {401},
}


def test_requests_built_from_it_are_accepted() -> None:
    async def test(c: Client) -> None:
        _, task, _ = await c.ask("POST", "/v1/tasks", json={"function": "f"})
        asked = 0
        for path, operations in SPEC["paths"].items():
            for method, op in operations.items():
                url = path
                for p in op["parameters"]:
                    if p["in"] == "path":
                        pattern = p["schema"].get("pattern", "")
                        value = task["id"] if "{32}" in pattern else "0" * 64 if pattern else example(p["schema"])
                        url = url.replace("{" + p["name"] + "}", str(value))
                        assert re.match(pattern, str(value))
                needed = [p for p in op["parameters"] if p["in"] == "query" and p["required"]]
                url += "".join("?" + p["name"] + "=x" for p in needed)
                bodies: list[tuple[dict[str, str], bytes | None]] = [({}, None)]
                for kind, media in op.get("requestBody", {}).get("content", {}).items():
                    if "cloudevents" in kind or kind in ("*/*", "application/octet-stream"):
                        bodies = [({}, b"x")]
                        continue
                    if kind == "application/json":
                        bodies = []
                    value = example(media["schema"])
                    value |= MORE.get(path, {})
                    code = msgspec.msgpack if "msgpack" in kind else msgspec.json
                    bodies.append(({"Content-Type": kind}, code.encode(value)))
                    if path == "/v1/events":
                        break
                for headers, body in bodies:
                    asked += 1
                    async with c.request(method, url, headers=headers, data=body) as answer:
                        good = {int(s) for s in op["responses"] if s < "300"} | ELSE.get(path, set())
                        if path == "/v1/tasks/{id}/retry":
                            good = {409}  # the task is still open
                        if url == "/metrics":
                            good = {200}
                        if answer.status not in good:
                            raise AssertionError((method, url, body, answer.status, await answer.read()))
                        declared = op["responses"][str(answer.status)]
                        kind = answer.headers.get("Content-Type", "").partition(";")[0]
                        assert kind in declared.get("content", {"": 1, "*/*": 1, "application/octet-stream": 1}), url
        assert asked >= len(ROUTES)

    with_server(test)


# ---------------------------------------------------------------- pages


def test_pages_are_served_with_a_strict_policy() -> None:
    async def test(c: Client) -> None:
        for path in ("/", "/docs", *(f"/page/{name}" for name in FILES)):
            status, body, headers = await c.ask("GET", path, token="")
            assert status == 200
            assert body
            assert headers["Content-Security-Policy"] == CSP
            assert headers["X-Content-Type-Options"] == "nosniff"
        assert (await c.ask("GET", "/openapi.json", token=""))[1]["openapi"] == "3.1.0"

    with_server(test)


def test_the_policy_allows_nothing_inline_or_foreign() -> None:
    rules = dict(part.strip().split(" ", 1) for part in CSP.split(";"))
    assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert {rules[k] for k in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}


def test_no_page_inserts_data_as_markup() -> None:
    for name in FILES:
        text = page_file(name)[0].decode()
        if name.endswith(".js"):
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|createContextualFragment"
                r"|DOMParser|setAttribute\(.on|srcdoc|localStorage|\.cookie",
                text,
            ), name
            # Every address that is asked or imported is this server's.
            assert not re.search(r"https?://|[\"'`]//", text), name
        if name.endswith(".html"):
            assert not re.search(r"<script(?![^>]* src=\"/page/)|<style|\son\w+=|style=|https?://", text), name
            for src in re.findall(r"(?:src|href)=\"(/page/[^\"]+)\"", text):
                assert src.removeprefix("/page/") in FILES
    assert "sessionStorage" in page_file("status.js")[0].decode()


def test_commands_that_are_recommended_exist() -> None:
    from pathlib import Path

    import oncue.dispatcher
    from oncue.cli.root import COMMANDS

    home = Path(oncue.dispatcher.__file__).parent
    files = [*(home / "http").rglob("*.py"), *(home / "web").glob("*"), *(home / "auth").glob("*.py")]
    named = {word for f in files for word in re.findall(r"(?:`|>|: )oncue ([a-z]+) ", f.read_text())}
    assert len(named) >= 3
    assert named <= set(COMMANDS)
