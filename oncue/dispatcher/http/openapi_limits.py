"""Limits that services check themselves, for the OpenAPI document.

The Structs of bodies and queries have the other limits. tests/security/test_openapi.py sends what
the document allows, and what it does not.
"""

from __future__ import annotations

from typing import Any

from oncue.dispatcher.auth.scopes import SCOPES
from oncue.dispatcher.http.schemas import KEY_CHARS, LONGEST_MS, POSITION_CHARS
from oncue.globs import MAX_CHARS
from oncue.protocol.records import MAX_RETRIES, NAME_CHARS
from oncue.protocol.retry_policy import RETRY_WORD
from oncue.view.lists import WORDS

Schema = dict[str, Any]
CLOUD_EVENT = "CloudEvent"
_PLAIN = r"^[^\u0000-\u001f\u007f-\u009f]*$"  # without control characters
_ID = r"^[0-9a-f]{32}$"
_SHORT_ID = r"^([0-9a-f]{0,32}|[0-9a-f]{1,16}[.][.][0-9a-f]{1,16})$"
_NAME: Schema = {"maxLength": NAME_CHARS}
_LIMIT_MS: Schema = {"minimum": 1, "maximum": LONGEST_MS}
_MS: Schema = {"minimum": 0, "maximum": LONGEST_MS}
_RETRY_WORD = f"^(?:{RETRY_WORD})$"
_CURSOR = r"^([0-9]{1,18}(-[^-]*)?)?$"
_BASE64 = r"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
_states = "|".join(WORDS)
_STATES = rf"^\s*({_states})?\s*(,\s*({_states})?\s*)*$"
_CALL: dict[str, Schema] = {"function": _NAME, "endpoint": _NAME, "timeout_ms": _LIMIT_MS, "expires_ms": _LIMIT_MS}
_MEDIA = r"^[A-Za-z0-9_!#$&^.+-]+/[A-Za-z0-9_!#$&^.+*-]+ *(;[ -~]*)?$"

#: Struct -> field -> what its schema has besides.
FIELDS: dict[str, dict[str, Schema]] = {
    "TaskRequest": _CALL | {"wait_ms": _MS, "key": {"maxLength": KEY_CHARS}},
    "BatchRequest": _CALL
    | {"key": {"pattern": r"^([0-9a-f]{32})?$"}, "payloads": {"items": {"minLength": 4, "pattern": _BASE64}}},
    "RetryPolicy": {
        "max": {"minimum": 0, "maximum": MAX_RETRIES},
        "backoff": {"enum": ["exponential", "constant"]},
        "base_ms": _MS,
        "cap_ms": _MS,
        "on": {"items": {"pattern": _RETRY_WORD}},
        "never": {"items": {"pattern": _RETRY_WORD}},
        "max_age_ms": _LIMIT_MS,
    },
    "OutcomesRequest": {"ids": {"items": {"pattern": _ID}}},
    "CancelRequest": {"tasks": {"items": {"pattern": _ID}}},
    "RetryRequest": {"tasks": {"items": {"pattern": _ID}}},
    "TaskSelection": {"state": {"pattern": _STATES}},
    "FunctionRequest": {"name": {"minLength": 1, **_NAME}, "body": {"minLength": 4, "pattern": _BASE64}},
    "EndpointRequest": {
        "name": {"pattern": r"^[A-Za-z0-9][A-Za-z0-9._-]*$"},
        "public_key": {"pattern": r"^[0-9A-Za-z.:+=^!/*?&<>()\[\]{}@%$#-]{40}$"},
        "lost_after_ms": _MS,
    },
    "TokenRequest": {
        "scopes": {"items": {"enum": sorted(SCOPES)}, "minItems": 1},
        "expires_s": {"minimum": 0, "maximum": LONGEST_MS // 1_000},
    },
    "BackfillRequest": {"glob": {"maxLength": MAX_CHARS - len("**/")}},
    "DeployRequest": {"files": {"minItems": 1}},
    "RuleFile": {"label": {"minLength": 1, **_NAME}},
    "EmitRequest": {
        "type": {"pattern": _PLAIN},
        "source": {"pattern": _PLAIN},
        "id": {"pattern": _PLAIN},
        "subject": {"pattern": _PLAIN, "minLength": 1},
        "time": {"format": "date-time"},
    },
}
_BY_FILTER: Schema = {  # the cursor is of the filter's list
    "required": ["filter"],
    "properties": {"filter": {"type": "object"}, "tasks": {"maxItems": 0}, "cursor": {"pattern": _CURSOR}},
}
#: Struct -> what its schema has besides: fields that go together.
STRUCTS: dict[str, Schema] = {
    "BatchRequest": {
        "oneOf": [
            {"required": ["payloads"], "properties": {"payloads": {"minItems": 1}, "calls": {"maxItems": 0}}},
            {"required": ["calls"], "properties": {"calls": {"minItems": 1}, "payloads": {"maxItems": 0}}},
        ]
    },
    "DismissRequest": {
        "oneOf": [
            {"required": ["letters"], "properties": {"letters": {"minItems": 1}, "all": {"const": False}}},
            {"required": ["all"], "properties": {"all": {"const": True}, "letters": {"maxItems": 0}}},
        ]
    },
    "RetryRequest": {
        "oneOf": [
            {"required": ["tasks"], "properties": {"tasks": {"minItems": 1}, "filter": {"type": "null"}}},
            _BY_FILTER,
        ]
    },
    "CancelRequest": {
        "oneOf": [
            {"properties": {"filter": {"type": "null"}}},
            _BY_FILTER,
        ]
    },
    "ExplainRequest": {
        "oneOf": [
            {"required": ["event"], "properties": {"event": {"type": "object"}, "offset": {"type": "null"}}},
            {"required": ["offset"], "properties": {"offset": {"type": "integer"}, "event": {"type": "null"}}},
        ]
    },
}
#: Query parameter (of all paths, or of one) or header -> what its schema has besides.
PARAMETERS: dict[str, Schema] = {
    "cursor": {"pattern": _CURSOR},
    "state": {"pattern": _STATES},
    "/v1/tasks id": {"pattern": _SHORT_ID},
    "Oncue-Position": {"pattern": rf"^[ -~]{{0,{POSITION_CHARS}}}$"},
    "Idempotency-Key": {"pattern": rf"^[ -~]{{0,{KEY_CHARS}}}$"},
}
_TEXT: Schema = {"type": "string", "minLength": 1, "pattern": _PLAIN}
_OPTIONAL: Schema = {"type": ["string", "null"], "minLength": 1, "pattern": _PLAIN}
EVENT: Schema = {
    "title": CLOUD_EVENT,
    "description": "An event in the JSON format of CloudEvents 1.0.",
    "type": "object",
    "required": ["specversion", "id", "source", "type"],
    "properties": {
        "specversion": {"const": "1.0"},
        "id": _TEXT,
        "source": _TEXT,
        "type": _TEXT,
        "subject": _OPTIONAL,
        "time": {"type": ["string", "null"], "format": "date-time"},
        "datacontenttype": {"type": ["string", "null"], "pattern": _MEDIA},
        "dataschema": _OPTIONAL,
        "data": {},
        "data_base64": {"type": ["string", "null"], "pattern": _BASE64},
    },
    "propertyNames": {"pattern": r"^([a-z0-9]+|data_base64)$"},
    "additionalProperties": {
        "anyOf": [
            {"type": "string", "pattern": _PLAIN},
            {"type": "integer", "minimum": -(1 << 31), "maximum": (1 << 31) - 1},
            {"type": ["boolean", "null"]},
        ]
    },
    "not": {"required": ["data", "data_base64"]},
}


def add_limits(components: dict[str, Schema]) -> None:
    """Add the limits to the schemas of the Structs, and the schema of an event."""
    components[CLOUD_EVENT] = EVENT
    for name, fields in FIELDS.items():
        properties = components[name]["properties"]
        for field, limits in fields.items():
            properties[field] = _with(properties[field], limits)
    for name, limits in STRUCTS.items():
        components[name] |= limits
    event = components["ExplainRequest"]["properties"]["event"]
    event["anyOf"] = [{"$ref": f"#/components/schemas/{CLOUD_EVENT}"}, {"type": "null"}]


def _with(schema: Schema, limits: Schema) -> Schema:
    """Return a schema with limits, which concern its member that is not null."""
    if "anyOf" in schema:
        members = [m if m == {"type": "null"} else _with(m, limits) for m in schema["anyOf"]]
        return schema | {"anyOf": members}
    found = schema | limits
    if "items" in schema and "items" in limits:
        found["items"] = schema["items"] | limits["items"]
    return found
