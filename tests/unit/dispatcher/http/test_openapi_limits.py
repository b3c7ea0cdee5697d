"""Limits in the OpenAPI document: what OpenAPI tools check is what the server checks."""

from __future__ import annotations

from typing import Any

import pytest

from oncue.dispatcher.http.openapi import document
from oncue.dispatcher.http.openapi_limits import CLOUD_EVENT, FIELDS, STRUCTS
from oncue.dispatcher.http.routes.table import ROUTES
from oncue.dispatcher.http.schemas import LONGEST_MS

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed: pip install -e '.[dev]'")
DOCUMENT: dict[str, Any] = document(ROUTES)
EVENT = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}


def fits(name: str, value: object) -> bool:
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("TaskRequest", {"function": "f", "timeout_ms": 1}, {"function": "f", "timeout_ms": 0}),
        ("TaskRequest", {"function": "f", "wait_ms": 0}, {"function": "f", "wait_ms": LONGEST_MS + 1}),
        ("TaskRequest", {"function": "f" * 200}, {"function": "f" * 201}),
        ("TaskRequest", {"function": "f", "retry": {"on": ["lost"]}}, {"function": "f", "retry": {"on": ["lots"]}}),
        ("BatchRequest", {"function": "f", "calls": [[[], {}]]}, {"function": "f"}),
        ("BatchRequest", {"function": "f", "payloads": ["bQ=="]}, {"function": "f", "payloads": [""]}),
        (
            "BatchRequest",
            {"function": "f", "payloads": ["bQ=="], "calls": []},
            {"function": "f", "payloads": ["bQ=="], "calls": [[[], {}]]},
        ),
        ("DismissRequest", {"all": True}, {}),
        ("DismissRequest", {"letters": [1]}, {"letters": [1], "all": True}),
        ("RetryRequest", {"tasks": ["0" * 32]}, {"tasks": []}),
        ("RetryRequest", {"filter": {"state": "failed, lost"}}, {"filter": {"state": "faild"}}),
        ("CancelRequest", {"filter": {}}, {"filter": {}, "tasks": ["0" * 32]}),
        ("ExplainRequest", {"offset": 0}, {}),
        ("ExplainRequest", {"event": EVENT}, {"event": {"id": "1"}}),
        ("TokenRequest", {"name": "n", "scopes": ["read"]}, {"name": "n", "scopes": ["write"]}),
        ("EndpointRequest", {"name": "a", "public_key": "i" * 40}, {"name": "a b", "public_key": "i" * 40}),
        ("DeployRequest", {"files": [{"label": "l", "text": ""}]}, {"files": []}),
        (CLOUD_EVENT, EVENT | {"data": [1], "run": 5, "subject": "s"}, EVENT | {"Run": 5}),
        (CLOUD_EVENT, EVENT | {"data_base64": "AAA="}, EVENT | {"data_base64": "AAA=", "data": 1}),
        (CLOUD_EVENT, EVENT | {"run": True}, EVENT | {"run": 1 << 31}),
        (CLOUD_EVENT, EVENT, EVENT | {"specversion": "0.3"}),
        (CLOUD_EVENT, EVENT, EVENT | {"id": "a\nb"}),
    ],
)
def test_bounds_patterns_and_what_goes_together(name: str, good: object, bad: object) -> None:
    assert fits(name, good)
    assert not fits(name, bad)


def test_limits_are_of_schemas_that_there_are() -> None:
    components = DOCUMENT["components"]["schemas"]
    for name, fields in FIELDS.items():
        assert fields.keys() <= components[name]["properties"].keys(), name
    assert STRUCTS.keys() <= components.keys()


def test_parameters_have_their_limits() -> None:
    tasks = {p["name"]: p["schema"] for p in DOCUMENT["paths"]["/v1/tasks"]["get"]["parameters"]}
    assert "pattern" in tasks["cursor"]
    assert "pattern" in tasks["state"]
    assert tasks["limit"]["minimum"] == 1
    assert "pattern" in tasks["Oncue-Position"]


def test_each_operation_names_all_statuses_of_its_kind() -> None:
    for path, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            statuses = set(operation["responses"])
            assert {"422", "500"} <= statuses, (method, path)
            if "requestBody" in operation:
                assert {"400", "408", "413", "415"} <= statuses, (method, path)
            if method not in ("get", "options"):
                assert "507" in statuses, (method, path)
            if operation["security"]:
                assert {"401", "403"} <= statuses, (method, path)
            if path != "/health/live":
                assert "503" in statuses, (method, path)
            if not path.startswith("/health/"):
                assert "429" in statuses, (method, path)
