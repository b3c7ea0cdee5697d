"""Build the OpenAPI 3.1 document from routes and their Structs.

These are the Structs that the routes take and give. The server decodes, checks and encodes by the
same routes and Structs, so the document cannot differ from it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec

from oncue import __version__
from oncue.dispatcher.auth.scopes import OPENS
from oncue.dispatcher.http import problems
from oncue.dispatcher.http.handler import POSITION
from oncue.dispatcher.http.openapi_limits import CLOUD_EVENT, PARAMETERS, add_limits
from oncue.dispatcher.http.route import MSGPACK, OCTETS, PROBLEM, NoQuery, Route
from oncue.errors import (
    DiskFull,
    Forbidden,
    Invalid,
    Malformed,
    NotReady,
    OncueError,
    RateLimited,
    RequestTimeout,
    TooLarge,
    Unauthorized,
    UnsupportedType,
)
from oncue.protocol.api import Page, Problem

_REF = "#/components/schemas/{name}"


@cache
def document_json(routes: tuple[Route, ...]) -> bytes:
    """Return the document of these routes in JSON."""
    return msgspec.json.encode(document(routes))


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """Return the document of these routes as plain data."""
    schemas = _Schemas(routes)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.template, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "oncue",
            "version": __version__,
            "summary": "Runs your Python functions on cue.",
            "description": "Ids are hex, times (`_us`) unix microseconds, sizes bytes. An answer that accepts something is "
            f"given when it is durable. Send back its {POSITION} header, and any server has seen it before it answers. "
            "Errors are RFC 9457 problems: `detail` says what is wrong and where, `remedy` what to do.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "paths": paths,
        "components": {
            "schemas": schemas.components(),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token of `oncue tokens create NAME`: oncue_...",
                }
            },
        },
    }


class _Schemas:
    """Schemas of all types of the routes.

    They are built together so that each Struct has one name.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        kinds: list[Any] = [Problem]
        for route in routes:
            kinds += [route.takes, route.takes_msgpack, route.takes_doc, route.gives, route.gives_msgpack, route.items]
        kinds = [k for k in kinds if k not in (None, bytes, str, Any)]
        found, self._components = msgspec.json.schema_components(kinds, ref_template=_REF)
        self._by_kind = list(zip(kinds, found, strict=True))
        _simplify_tuples(self._components)
        add_limits(self._components)

    def of(self, kind: Any, items: Any = None) -> dict[str, Any]:
        if kind is Page and items is not None:
            return self._page(items)
        if kind in (bytes, str, Any):
            return {} if kind is not str else {"type": "string"}
        return next(schema for known, schema in self._by_kind if known == kind)

    def _page(self, items: Any) -> dict[str, Any]:
        name = f"{items.__name__}Page"
        page = dict(self._components["Page"])
        page["title"] = name
        page["properties"] = page["properties"] | {"items": {"type": "array", "items": self.of(items)}}
        self._components[name] = page
        return {"$ref": _REF.format(name=name)}

    def components(self) -> dict[str, Any]:
        return dict(sorted(self._components.items()))


def _simplify_tuples(schema: Any) -> None:
    """Replace `prefixItems` of a tuple with items of one kind, as old tools need it."""
    if isinstance(schema, list):
        for item in schema:
            _simplify_tuples(item)
    elif isinstance(schema, dict):
        first, *others = schema.get("prefixItems") or [None]
        if first is not None and all(other == first for other in others):
            del schema["prefixItems"]
            schema["items"] = first
        for item in schema.values():
            _simplify_tuples(item)


def _operation(route: Route, schemas: _Schemas) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": _operation_id(route),
        "summary": route.summary.split(". ")[0].rstrip("."),
        "description": route.summary,
        "tags": [route.path.split("/")[2] if route.path.startswith("/v1/") else "server"],
        "parameters": _parameters(route, schemas),
        "responses": _responses(route, schemas),
    }
    takes = route.takes or route.takes_doc
    if takes is not None:
        content = {kind: {"schema": _body(route, kind, schemas)} for kind in route.reads}
        found["requestBody"] = {"required": not route.optional, "content": content}
    if route.scope:
        found["security"] = [{"token": []}]
        found["x-oncue-scopes"] = sorted(OPENS[route.scope])
    else:
        found["security"] = []
    return found


def _operation_id(route: Route) -> str:
    words = re.findall(r"\w+", route.template.removeprefix("/v1"))
    return "_".join([route.method.lower(), *words]) if words else f"{route.method.lower()}_index"


def _body(route: Route, kind: str, schemas: _Schemas) -> dict[str, Any]:
    if kind in (OCTETS, "*/*"):
        return {}
    if kind == MSGPACK:
        return schemas.of(route.takes_msgpack or route.takes)
    if kind.startswith("application/cloudevents"):
        event = {"$ref": _REF.format(name=CLOUD_EVENT)}
        return {"type": "array", "items": event} if "batch" in kind else event
    return schemas.of(route.takes or route.takes_doc)


def _parameters(route: Route, schemas: _Schemas) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": _path_schema(route, name)} for name in route.parameters
    ]
    if route.query is not NoQuery:
        schema = msgspec.json.schema(route.query)
        shape = schema["$defs"][route.query.__name__] if "$defs" in schema else schema
        for name, field in shape["properties"].items():
            limited = field | PARAMETERS.get(name, {}) | PARAMETERS.get(f"{route.path} {name}", {})
            entry = {"name": name, "in": "query", "required": name in shape.get("required", ()), "schema": limited}
            if "description" in field:
                entry["description"] = field["description"]
            found.append(entry)
    if route.scope:
        found.append(
            {
                "name": POSITION,
                "in": "header",
                "required": False,
                "description": "Of an earlier answer: wait (2 s at most) until this server has seen it.",
                "schema": {"type": "string"} | PARAMETERS[POSITION],
            }
        )
    if route.path in ("/v1/tasks", "/v1/tasks/batch", "/v1/events") and route.method == "POST":
        schema = {"type": "string"} | PARAMETERS["Idempotency-Key"]
        found.append({"name": "Idempotency-Key", "in": "header", "required": False, "schema": schema})
    return found


def _path_schema(route: Route, name: str) -> dict[str, Any]:
    if name == "sha256":
        return {"type": "string", "pattern": "^[0-9a-f]{64}$"}
    if name == "offset" or route.path.startswith("/v1/dead"):
        return {"type": "integer", "minimum": 0, "maximum": 10**18 - 1}
    if name == "id" and route.path.startswith("/v1/tasks"):
        return {"type": "string", "pattern": "^[0-9a-f]{32}$"}
    return {"type": "string", "minLength": 1}


def _responses(route: Route, schemas: _Schemas) -> dict[str, Any]:
    good: dict[str, Any] = {"description": "Done." if route.gives is None else "As asked."}
    if route.gives is not None:
        good["content"] = {
            kind: {
                "schema": schemas.of(
                    (route.gives_msgpack if kind == MSGPACK else None) or route.gives,
                    route.items,
                )
            }
            for kind in route.writes
        }
    responses: dict[str, Any] = {str(status): good for status in (route.status, *route.also)}
    by_status: dict[int, list[type[OncueError]]] = {}
    for error in _errors(route):
        by_status.setdefault(error.status, []).append(error)
    for status, kinds in sorted(by_status.items()):
        texts = dict.fromkeys(f"`{kind.code}`: {problems.title(kind)}." for kind in kinds)
        responses[str(status)] = {
            "description": " ".join(texts),
            "content": {PROBLEM: {"schema": {"$ref": _REF.format(name="Problem")}}},
        }
    return responses


def _errors(route: Route) -> list[type[OncueError]]:
    found: list[type[OncueError]] = [Invalid, problems.Internal]
    if not route.probe:  # others wait while the server starts, and may come too often
        found += [RateLimited, NotReady]
    if route.scope:
        found += [Unauthorized, Forbidden]
    if route.method not in ("GET", "OPTIONS"):
        found.append(DiskFull)
    if route.takes or route.takes_doc or route.raw:
        found += [Malformed, RequestTimeout, TooLarge, UnsupportedType]
    return list(dict.fromkeys([*found, *route.errors]))
