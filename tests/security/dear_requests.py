"""The dearest valid requests of each route: as long, as many, as deep as its schema and its limits allow."""

from __future__ import annotations

import base64
import hashlib
import json
import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from oncue.dispatcher.http.body import VALUES
from oncue.functions.body import FunctionBody
from oncue.protocol.codec import encode
from tests.security.world import World

MIB = 1 << 20
LONG = "x" * 6_000  # in a path or a query
MOST = VALUES - 1_000  # values in a JSON body


class Dear(NamedTuple):
    """One request, sent by some callers at once."""

    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = {}
    admin: bool = False
    seconds: float = 60.0  # of a stream


Maker = Callable[[World], list[Dear]]
JSON = {"Content-Type": "application/json"}


def _json(method: str, path: str, body: Any, **fields: Any) -> Dear:
    return Dear(method, path, json.dumps(body).encode(), JSON, **fields)


def _padded(head: str, item: str, tail: str, size: int = 0) -> bytes:
    """Return a JSON text of about `size` bytes, most of it small items; without a size as many as are taken."""
    each = 1 + sum(item.count(c) for c in ",[{")
    count = max(1, (size - len(head) - len(tail)) // (len(item) + 1)) if size else MOST // each
    return (head + ",".join([item] * count) + tail).encode()


def _deep(levels: int = 500) -> str:
    return "[" * levels + "]" * levels


def get(path: str, **fields: Any) -> Maker:
    return lambda world: [Dear("GET", path.format(**world.ids), **fields)]


def _listed(path: str, *queries: str) -> Maker:
    return lambda world: [Dear("GET", f"{path}?limit=1000{q}".format(**world.ids)) for q in ("", *queries)]


def _submit(world: World) -> list[Dear]:
    head = '{"function": "zqmark_fn", "endpoint": "zqmark-idle", "args": ['
    most = [Dear("POST", "/v1/tasks", _padded(head, i, "]}"), JSON) for i in ("[]", "{}", '"é"', _deep(), "1e9")]
    text = json.dumps("é" * 10 * MIB, ensure_ascii=False)
    large = [Dear("POST", "/v1/tasks", f"{head}{text}]}}".encode(), JSON)]
    return [*most, *large, Dear("POST", "/v1/tasks", _padded(head, "[]", "]}", 60 * MIB), JSON)]


def _batch(world: World) -> list[Dear]:
    head = '{"function": "zqmark_fn", "endpoint": "zqmark-idle", "calls": ['
    return [
        Dear("POST", "/v1/tasks/batch", _padded(head, '[[],{"word":"x"}]', "]}"), JSON),
        Dear("POST", "/v1/tasks/batch", _padded(head, f'[["{"x" * 2_000}"],{{}}]', "]}", 10 * MIB), JSON),
        Dear("POST", "/v1/tasks/batch", _padded(head, "[[],{}]", "]}", 60 * MIB), JSON),
    ]


def _ids(path: str, field: str, size: int = 60) -> Maker:
    def make(world: World) -> list[Dear]:
        head = f'{{"{field}": ['
        unknown, own = _padded(head, f'"{"0" * 32}"', "]}"), _padded(head, f'"{world.ids["task"]}"', "]}")
        over = _padded(head, f'"{"0" * 32}"', "]}", size * MIB)
        return [Dear("POST", path, body, JSON) for body in (unknown, own, over)]

    return make


def _retries(world: World) -> list[Dear]:
    """The most ids that are taken, and the largest pages of tasks that can be retried, dry and again and again."""
    path, page = "/v1/tasks/retry", {"limit": 1_000}
    given = [[world.ids["task"]] * 1_000, [f"{n:032x}" for n in range(1_000)]]
    filters: list[dict[str, Any]] = [{"endpoint": "zqmark-idle", "state": "cancelled"}, {"rule": LONG[:1_000]}]
    return [
        *[_json("POST", path, {"tasks": ids}) for ids in given],
        *[_json("POST", path, page | {"filter": f, "dry_run": True, "again": True}) for f in filters],
        _json("POST", path, page | {"filter": filters[0]}),
        _json("POST", path, page | {"filter": filters[0], "again": True}),
        *_ids(path, "tasks", 3)(world),
    ]


def _events(world: World) -> list[Dear]:
    batch = {"Content-Type": "application/cloudevents-batch+json"}
    event = '{"specversion":"1.0","id":"%d","source":"/dear","type":"dear","data":{"n":[%s]}}'
    many = "[" + ",".join(event % (i, "1,2,3") for i in range(65_536)) + "]"
    large = event % (0, ",".join(["[]"] * (MOST // 2)))
    return [
        Dear("POST", "/v1/events", many.encode(), batch),
        Dear("POST", "/v1/events", large.encode(), {"Content-Type": "application/cloudevents+json"}),
        Dear("POST", "/v1/events", _padded('{"type":"t","source":"/s","data":[', "{}", "]}"), JSON),
        Dear("POST", "/v1/events", _padded("[", "[]", "]", 60 * MIB), batch),
        Dear("POST", "/v1/events", b"x", JSON | {f"ce-x{i}": "v" * 100 for i in range(60)} | {"ce-id": "1"}),
    ]


def _functions(world: World) -> list[Dear]:
    pickled = random.Random(1).randbytes(8 * MIB)
    parameters = [{"name": f"p{i}", "kind": "keyword_only"} for i in range(1_000)]
    long = {"name": "f", "doc": "d" * MIB, "signature": "s" * MIB, "parameters": parameters}
    body = FunctionBody(1, "f", "f", "m", "3.11", "s" * 20 * MIB, pickled * 3, {}, (), "0.1.0")
    small = encode(FunctionBody(1, "f", "f", "m", "3.11", "s", pickled, {}, (), "0.1.0"))
    whole = Dear(
        "POST", "/v1/functions", encode(long | {"body": encode(body)}), {"Content-Type": "application/msgpack"}
    )
    return [whole, _json("POST", "/v1/functions", long | {"body": base64.b64encode(small).decode()})]


def _rule_file(count: int, kind: str = "a") -> str:
    rule = "  - {name: %s-%d, on: {type: dear.%s}, run: {function: zqmark_fn, endpoint: zqmark-ep, args: [1]}}"
    return "rules:\n" + "\n".join(rule % (kind, i, kind) for i in range(count))


def _deploys(world: World) -> list[Dear]:
    functions = {"zqmark_fn": world.ids["function"]}

    def deploy(*files: tuple[str, str]) -> Dear:
        given = [{"label": label, "text": text} for label, text in files]
        return _json("POST", "/v1/rules", {"files": given, "functions": functions, "dry_run": True})

    lines = "\n".join(f"# {random.Random(i).randbytes(8).hex()}" for i in range(40_000))
    return [
        deploy(("junk", "- {}\n" * 200_000)),
        deploy(("deep", "rules: " + _deep(5_000))),
        deploy(("many", _rule_file(5_000))),
        deploy(("zqmark-label", _rule_file(1) + "\n" + lines)),
        deploy(*[(f"l{i}", "rules: []") for i in range(1_000)]),
        deploy(("aliases", "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"{c}: &{c} [{','.join(['*' + p] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
        ))),
        deploy(("one line", "rules: [" + "x" * 20 * MIB + "]")),
    ]  # fmt: skip


def _explain(world: World) -> list[Dear]:
    path = "/v1/rules/zqmark-rule/explain"
    head = '{"event": {"type": "shared.type", "data": {"word": ['
    return [Dear("POST", path, _padded(head, item, "]}}}"), JSON) for item in ("[]", '{"a":1}')]


def _why(name: str) -> Maker:
    return lambda world: [_json("POST", f"/v1/rules/zqmark-rule/{name}", {"why": "é" * 20 * MIB})]


def _endpoints(world: World) -> list[Dear]:
    labels = {f"k{i}": "v" * 10 for i in range(500_000)}
    body = {"name": "zqmark-idle", "public_key": "i" * 40}
    few = {k: labels[k] for k in list(labels)[:1_000]}
    return [_json("POST", "/v1/endpoints", body | {"labels": found}) for found in (labels, few)]


def _tokens(world: World) -> list[Dear]:
    return [
        _json("POST", "/v1/tokens", {"name": "n" * 30 * MIB, "scopes": ["read"], "expires_s": 60}),
        _json("POST", "/v1/tokens", {"name": "n", "scopes": ["read"] * (MOST - 10), "expires_s": 60}),
    ]


def _hook(world: World) -> list[Dear]:
    good = JSON | {"Authorization": "Bearer zqmark-sesame"}
    return [
        Dear("POST", "/hooks/zqmark-hook", _padded("[", item, "]", MIB - 10), headers)
        for item in ("[]", "{}", _deep(200))
        for headers in (good, JSON)
    ]


def _put(world: World) -> list[Dear]:
    content = random.Random(2).randbytes(64 * MIB)
    return [Dear("PUT", f"/v1/blobs/{hashlib.sha256(content).hexdigest()}", content)]


def _missing_blobs(world: World) -> list[Dear]:
    names = ", ".join(f'"{n:064x}"' for n in range(1_000))
    return [
        Dear("POST", "/v1/blobs/missing", body.encode(), JSON)
        for body in (f'{{"sha256": [{names}]}}', f'{{"sha256": [{names}, {names}]}}')
    ]


DEAR: dict[str, Maker] = {
    "POST /v1/tasks": _submit,
    "POST /v1/tasks/batch": _batch,
    "GET /v1/tasks": _listed(
        "/v1/tasks",
        "&state=open",
        "&state=closed&owner=zqmark-owner",
        "&endpoint={endpoint}",
        "&rule=nothing",
        "&function=nothing",
        "&event_source=/dear&event_id=x",
        "&since_us=1&rule=zqmark-rule",
        "&until_us=1",
        "&state=open,failed,succeeded",
        "&id=0000",
        "&id=019",
        f"&rule={LONG}",
        f"&cursor={LONG}",
    ),
    "GET /v1/tasks/count": lambda w: [
        Dear("GET", f"/v1/tasks/count{q}".format(**w.ids))
        for q in (
            "",
            "?state=open",
            "?state=closed&not_retried=1",
            "?endpoint={endpoint}",
            "?function=nothing",
            "?since_us=1&rule=zqmark-rule",
            "?event_source=/dear&event_id=x",
            f"?rule={LONG}",
        )
    ],
    "POST /v1/tasks/outcomes": _ids("/v1/tasks/outcomes", "ids"),
    "POST /v1/tasks/cancel": _ids("/v1/tasks/cancel", "tasks"),
    "POST /v1/tasks/retry": _retries,
    "GET /v1/tasks/{id}": get("/v1/tasks/{waiting}?wait_ms=500"),
    "GET /v1/tasks/{id}/timeline": get("/v1/tasks/{task}/timeline"),
    "GET /v1/tasks/{id}/logs": get("/v1/tasks/{task}/logs"),
    "POST /v1/tasks/{id}/cancel": lambda w: [Dear("POST", f"/v1/tasks/{w.ids['task']}/cancel")],
    "POST /v1/tasks/{id}/retry": lambda w: [Dear("POST", f"/v1/tasks/{w.ids['task']}/retry")] * 3,
    "GET /v1/outcomes": get("/v1/outcomes?stream=dear", seconds=0.5),
    "POST /v1/events": _events,
    "GET /v1/events": _listed(
        "/v1/events",
        "&type=dear",
        "&source=/nothing",
        "&type=nothing",
        "&id=nothing",
        "&since_us=1&rule=zqmark-rule&state=failed,succeeded",
        "&endpoint={endpoint}",
        f"&type={LONG}",
        f"&id={LONG}",
        f"&cursor={LONG}",
    ),
    "GET /v1/events/count": lambda w: [
        Dear("GET", f"/v1/events/count{q}".format(**w.ids))
        for q in ("", "?type=dear", "?since_us=1", "?id=nothing", "?rule=zqmark-rule", "?endpoint={endpoint}")
    ],
    "GET /v1/events/{offset}": get("/v1/events/{offset}"),
    "GET /v1/events/{offset}/trace": get("/v1/events/{offset}/trace"),
    "GET /v1/tasks/{id}/rules/{name}": get("/v1/tasks/{task}/rules/zqmark-rule"),
    "GET /v1/tasks/{id}/trace": get("/v1/tasks/{task}/trace"),
    "GET /v1/report": _listed(
        "/v1/report", "&rule=zqmark-rule", f"&group={LONG}", f"&trigger={LONG}", f"&cursor={LONG}"
    ),
    "GET /v1/triggers": get("/v1/triggers"),
    "GET /v1/triggers/{name}": get("/v1/triggers/zqmark-files"),
    "GET /v1/triggers/{name}/file": get(f"/v1/triggers/zqmark-files/file?path={'a/' * 3_000}"),
    "POST /v1/triggers/{name}/backfill": lambda w: [
        _json("POST", "/v1/triggers/zqmark-files/backfill", {"dry_run": True, "glob": glob})
        for glob in ("", "**/{" + "a*," * 300 + "b}")
    ],
    "GET /v1/live": get("/v1/live", seconds=0.5),
    "GET /v1/dead": _listed("/v1/dead", "&all=1", f"&cursor={LONG}"),
    "GET /v1/dead/{id}": get("/v1/dead/{dead}"),
    "POST /v1/dead/{id}/retry": lambda w: [Dear("POST", "/v1/dead/999999999/retry")],
    "POST /v1/dead/dismiss": lambda w: [
        _json("POST", "/v1/dead/dismiss", {"letters": list(range(10_000)), "reason": "r" * 20 * MIB})
    ],
    "POST /v1/rules": _deploys,
    "GET /v1/rules": get("/v1/rules"),
    "GET /v1/rules/{name}": get("/v1/rules/zqmark-rule"),
    "POST /v1/rules/{name}/enable": _why("enable"),
    "POST /v1/rules/{name}/disable": _why("disable"),
    "POST /v1/deployments/{label}/simulate": lambda w: [
        _json("POST", "/v1/deployments/zqmark/simulate", {"text": text, "limit": 1000})
        for text in ("rules: []", "rules: [" + "{name: r}," * 100_000 + "]", "[" * 100_000)
    ],
    "POST /v1/rules/{name}/replay": lambda w: [
        _json("POST", "/v1/rules/zqmark-rule/replay", {"name": "dear", "limit": 1000, "where": where})
        for where in ("", "[1,2,3,4,5,6,7,8,9].all(x, [1,2,3,4,5,6,7,8,9].all(y, x * y < 100))")
    ],
    "POST /v1/rules/{name}/explain": _explain,
    "GET /v1/deployments/{label}": get("/v1/deployments/many"),
    "POST /v1/deployments/{label}/rollback": lambda w: [
        _json("POST", "/v1/deployments/many/rollback", {"version": 1, "dry_run": True})
    ],
    "DELETE /v1/deployments/{label}": lambda w: [Dear("DELETE", f"/v1/deployments/{LONG}")],
    "GET /v1/me": lambda w: [Dear("GET", "/v1/me", headers={"Oncue-Position": "9" * 999})],
    "POST /v1/functions": _functions,
    "GET /v1/functions": _listed("/v1/functions", f"&cursor={LONG}"),
    "GET /v1/functions/{name}": lambda w: [
        Dear("GET", f"/v1/functions/{name}") for name in (w.ids["function"], LONG, "zqmark_fn@999999999")
    ],
    "POST /v1/endpoints": _endpoints,
    "GET /v1/endpoints": get("/v1/endpoints"),
    "GET /v1/endpoints/{name}": get("/v1/endpoints/zqmark-ep"),
    "DELETE /v1/endpoints/{name}": lambda w: [Dear("DELETE", f"/v1/endpoints/{LONG}")],
    "POST /v1/tokens": _tokens,
    "GET /v1/tokens": get("/v1/tokens"),
    "DELETE /v1/tokens/{id}": lambda w: [Dear("DELETE", f"/v1/tokens/{LONG}")],
    "PUT /v1/blobs/{sha256}": _put,
    "POST /v1/blobs/missing": _missing_blobs,
    "GET /v1/blobs/{sha256}": get("/v1/blobs/{blob}"),
    "GET /v1/view": get("/v1/view", admin=True),
    "POST /hooks/{trigger}": _hook,
    "OPTIONS /hooks/{trigger}": lambda w: [
        Dear("OPTIONS", "/hooks/zqmark-hook", headers={"WebHook-Request-Origin": "x" * 8_000})
    ],
    "GET /health/live": get("/health/live"),
    "GET /health/ready": get("/health/ready", admin=True),
    "GET /metrics": get("/metrics", admin=True),
    "GET /openapi.json": get("/openapi.json"),
    "GET /v1/schemas/rules": get("/v1/schemas/rules"),
    "GET /docs": get("/docs"),
    "GET /": get("/"),
    "GET /page/{file}": get("/page/index.html"),
}
