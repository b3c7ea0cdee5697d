"""Hooks of Schemathesis: half of the cases name objects that exist, so that they come past the look-up."""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import Any

import schemathesis

from oncue.dispatcher.http.schemas import KEY_CHARS
from oncue.protocol.stated_options import PATTERN_CHARS

IDS: dict[str, str] = json.loads(os.environ.get("ONCUE_TEST_IDS", "{}"))
LONGEST_WAIT_MS = 100
PATHS = {
    "/v1/tasks/{id}": {"id": "task"},
    "/v1/dead/{id}": {"id": "dead"},
    "/v1/events/{offset}": {"offset": "offset"},
    "/v1/blobs/{sha256}": {"sha256": "blob"},
    "/v1/rules/{name}": {"name": "rule"},
    "/v1/triggers/{name}": {"name": "trigger"},
    "/v1/deployments/{label}": {"label": "label"},
    "/v1/functions/{name}": {"name": "function"},
    "/v1/endpoints/{name}": {"name": "endpoint"},
    "/hooks/{trigger}": {"trigger": "hook"},
}


def _half(*given: object) -> bool:
    """Return True for about half of the inputs, for the same ones each time."""
    return hashlib.blake2b(repr(given).encode("utf-8", "surrogatepass")).digest()[0] % 2 == 0


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    operation = context.operation
    if not path_parameters:
        return path_parameters
    if operation.method.upper() in ("DELETE", "PUT"):  # the objects, and the run's own token, stay
        return {k: f"no{v}" if str(v).startswith(("zqmark", "ep_", "tok_")) else v for k, v in path_parameters.items()}
    if not _half(path_parameters):
        return path_parameters
    for path, kinds in PATHS.items():
        if operation.path.startswith(path):
            found = {name: int(IDS[k]) if IDS[k].isdecimal() else IDS[k] for name, k in kinds.items()}
            return path_parameters | found
    return path_parameters


@schemathesis.hook
def map_query(context: Any, query: dict[str, Any] | None) -> dict[str, Any] | None:
    # What OpenAPI cannot say: these two go together, and a cursor comes from an earlier answer.
    if query and bool(query.get("event_id")) != bool(query.get("event_source")):
        query = {k: v for k, v in query.items() if k not in ("event_id", "event_source")}
    if query and re.fullmatch(r"[0-9]{1,18}(-[^-]*)?", str(query.get("cursor", ""))):
        query = {k: v for k, v in query.items() if k != "cursor"}
    if query and query.get("group") and len(str(query["group"])) <= PATTERN_CHARS:
        query["group"] = "data.sample"  # what a path is, a pattern would not say
    if query and isinstance(query.get("wait_ms"), int):
        query["wait_ms"] = min(query["wait_ms"], LONGEST_WAIT_MS)
    return query


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    # Asked in every phase, which map_query is not: the output of a task that is open has no end to be read to.
    if case.query and str(case.query.get("follow", "")).strip().lower() in ("true", "1", "yes", "on", "t", "y"):
        case.query["follow"] = "false"


def _whole_numbers(value: Any) -> Any:
    """Write 5.0 as 5: for JSON Schema they are the same, and a decoder may tell them apart."""
    if isinstance(value, dict):
        return {k: _whole_numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@schemathesis.hook
def map_headers(context: Any, headers: dict[str, Any] | None) -> dict[str, Any] | None:
    # The body's key, if there is one, has to be the same, and a batch's is a UUIDv7.
    if headers and re.fullmatch(rf"[ -~]{{0,{KEY_CHARS}}}", str(headers.get("Idempotency-Key", ""))):
        headers.pop("Idempotency-Key", None)
    return headers


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    body = _whole_numbers(body)
    if not isinstance(body, dict):
        return body
    if re.fullmatch(r"[0-9]{1,18}(-[^-]*)?", str(body.get("cursor", ""))):
        del body["cursor"]
    if isinstance(body.get("wait_ms"), int):
        body["wait_ms"] = min(body["wait_ms"], LONGEST_WAIT_MS)
    if re.fullmatch(
        r"[0-9A-Za-z.:+=^!/*?&<>()\[\]{}@%$#-]{40}", str(body.get("public_key", ""))
    ):  # some texts in Z85 are no 32 bytes
        body["public_key"] = "i" * 40
    # What a glob, a size or a duration is, a pattern would not say.
    if isinstance(body.get("outputs"), list):
        body["outputs"] = [
            "out/*.h5" if isinstance(o, str) and 1 <= len(o) <= PATTERN_CHARS else o for o in body["outputs"]
        ]
    if isinstance(resources := body.get("resources"), dict):
        texts = {"memory": "1GB", "walltime": "1h"}
        body["resources"] = {k: texts.get(k, v) if isinstance(v, str) else v for k, v in resources.items()}
    if _half(sorted(body, key=repr)):
        for field, kind in (("function", "function"), ("endpoint", "endpoint")):
            if isinstance(body.get(field), str) and len(body[field]) <= 200:  # else it is to be refused
                body[field] = IDS[kind]
    return body
