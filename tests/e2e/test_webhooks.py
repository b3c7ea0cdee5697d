"""Webhooks and CloudEvents over HTTP, signed here as the senders sign them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote_plus

import pytest

from tests.e2e.running import Answer, System, system_in

KEY = b"a key that both sides know: daq!"
RULES = """
triggers:
  - {name: daq, kind: webhook, verify: {standard-webhooks: "${secret:daq}"}}
  - {name: forge, kind: webhook, verify: {github: "${env:FORGE_SECRET}"}}
  - {name: door, kind: webhook, verify: {bearer: sesame}, type: door.opened}
  - {name: open, kind: webhook, verify: none, identity: body}
  - {name: form, kind: webhook, verify: {github: "${env:FORGE_SECRET}"}}
  - {name: shop, kind: webhook, verify: {hmac-sha512: sold, header: X-Shop-Sig, encoding: base64}, id-header: X-Order}
  - {name: sized, kind: webhook, verify: none}
  - {name: unset, kind: webhook, verify: {bearer: "${secret:nobody-has-stored-it}"}}
rules:
  - {name: on-daq, on: daq, run: {function: work.py:echo, endpoint: local, args: {data: "${data}", id: "${id}"}}}
  - {name: on-forge, on: forge, run: {function: work.py:echo, endpoint: local, args: {data: "${data.ref}", id: "${type}"}}}
  - {name: on-door, on: door, run: {function: work.py:echo, endpoint: local, args: {data: "${data}", id: "${type}"}}}
  - {name: on-form, on: form, run: {function: work.py:echo, endpoint: local, args: {data: "${data.ref}", id: "${type}"}}}
  - {name: on-shop, on: shop, run: {function: work.py:echo, endpoint: local, args: {data: "${data}", id: "${id}"}}}
  - {name: on-sized, on: sized, run: {function: work.py:measure, endpoint: local, args: {data: "${data}", id: "${id}"}}}
  - {name: on-open, on: open, run: {function: work.py:echo, endpoint: local, args: {data: "${data}", id: "${id}"}}}
  - {name: on-scan, on: {type: org.aps.scan}, match: {data.n: {exists: true}},
     run: {function: work.py:echo, endpoint: local, args: {data: "${data.n}", id: "${id}"}}}
"""


@pytest.fixture(scope="module")
def hooked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("hooks")
    secrets = folder / "data" / "secrets"
    secrets.mkdir(parents=True)
    (secrets / "daq").write_text("whsec_" + base64.b64encode(KEY).decode() + "\n")
    with system_in(folder, "--workers", "1", FORGE_SECRET="forged") as system:
        system.write(
            "work.py",
            "def echo(data, id):\n    return [data, id]\ndef measure(data, id):\n    return [len(data), id]\n",
        )
        system.write("hooks.yaml", RULES)
        system.oncue("deploy", "hooks.yaml", "--yes")
        system.await_true(
            lambda: sum(t["state"] == "running" for t in system.http("GET", "/v1/triggers").json) >= 7, "the triggers"
        )
        yield system


def signed(body: bytes, message_id: str, key: bytes = KEY, at: float | None = None) -> dict[str, str]:
    stamp = str(int(time.time() if at is None else at))
    mac = hmac.digest(key, f"{message_id}.{stamp}.".encode() + body, "sha256")
    return {
        "webhook-id": message_id,
        "webhook-timestamp": stamp,
        "webhook-signature": "v1,aaaa v1," + base64.b64encode(mac).decode(),
        "Content-Type": "application/json",
    }


def hook(system: System, name: str, body: bytes, headers: Mapping[str, str]) -> Answer:
    return system.http("POST", f"/hooks/{name}", body, headers, token=None)


def test_standard_webhooks_and_the_same_id_twice(hooked: System) -> None:
    body = b'{"frame": 1}'
    headers = signed(body, "msg_1")
    for _ in range(2):
        assert hook(hooked, "daq", body, headers).status == 202
    again = signed(body, "msg_1", at=time.time() - 5)  # sent again, signed anew
    assert hook(hooked, "daq", body, again).status == 202
    other = b'{"frame": 2}'
    assert hook(hooked, "daq", other, signed(other, "msg_2")).status == 202
    found = hooked.await_tasks(2, rule="on-daq")
    assert sorted((t["value"][0]["frame"], t["value"][1]) for t in found) == [(1, "msg_1"), (2, "msg_2")]


def test_github(hooked: System) -> None:
    body = json.dumps({"ref": "refs/heads/main"}).encode()
    mac = hmac.new(b"forged", body, hashlib.sha256).hexdigest()
    headers = {
        "X-Hub-Signature-256": f"sha256={mac}",
        "X-GitHub-Event": "push",
        "X-GitHub-Delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958",
        "Content-Type": "application/json",
    }
    for _ in range(2):
        assert hook(hooked, "forge", body, headers).status == 202
    assert hook(hooked, "forge", body, headers | {"X-GitHub-Delivery": "another"}).status == 202
    found = hooked.await_tasks(2, rule="on-forge")
    assert [t["value"] for t in found] == [["refs/heads/main", "github.push"]] * 2
    assert hook(hooked, "forge", body + b" ", headers).status == 401


def test_bearer(hooked: System) -> None:
    good = {"Authorization": "Bearer sesame", "Content-Type": "text/plain"}
    assert hook(hooked, "door", b"front", good).status == 202
    (task,) = hooked.await_tasks(1, rule="on-door")
    assert task["value"] == ["front", "door.opened"]


def test_cloudevents_through_a_webhook_keep_their_id(hooked: System) -> None:
    headers = {
        "ce-specversion": "1.0",
        "ce-id": "A-1",
        "ce-source": "/2bm",
        "ce-type": "x.y",
        "ce-oncueowner": "nobody",
        "Content-Type": "application/json",
    }
    for _ in range(2):
        assert hook(hooked, "open", b"[1]", headers).status == 202
    for body in (b'{"same": "body"}', b'{"same": "body"}', b'{"the": "last"}'):
        assert hook(hooked, "open", body, {"Content-Type": "application/json"}).status == 202
    found = hooked.await_tasks(3, rule="on-open")  # newest first; all before the last have been looked at
    assert [t["value"][0] for t in found] == [{"the": "last"}, {"same": "body"}, [1]]
    assert found[2]["value"][1] == "A-1"


def structured(n: int, event_id: str) -> dict[str, Any]:
    return {"specversion": "1.0", "id": event_id, "source": "/2bm", "type": "org.aps.scan", "data": {"n": n}}


def test_cloudevents_in_all_forms(hooked: System) -> None:
    one = json.dumps(structured(1, "e1")).encode()
    assert hooked.http("POST", "/v1/events", one, {"Content-Type": "application/cloudevents+json"}).status == 202
    two = json.dumps([structured(2, "e2"), structured(3, "e3"), structured(2, "e2")]).encode()
    batch = hooked.http("POST", "/v1/events", two, {"Content-Type": "application/cloudevents-batch+json"})
    assert (batch.status, batch.json["count"]) == (202, 3)
    binary = {
        "ce-specversion": "1.0",
        "ce-id": "e4",
        "ce-source": "/2bm",
        "ce-type": "org.aps.scan",
        "ce-subject": "caf%C3%A9",
        "Content-Type": "application/json",
    }
    assert hooked.http("POST", "/v1/events", b'{"n": 4}', binary).status == 202
    plain = {"type": "org.aps.scan", "source": "/2bm", "data": {"n": 5}}
    for _ in range(2):
        assert hooked.http("POST", "/v1/events", plain, {"Idempotency-Key": "the same"}).status == 202
    assert hooked.http("POST", "/v1/events", plain | {"data": {"m": 5}}).status == 202  # does not match
    found = hooked.await_tasks(5, rule="on-scan")
    assert sorted(t["value"][0] for t in found) == [1, 2, 3, 4, 5]
    subjects = {e["event"].get("subject") for e in hooked.http("GET", "/v1/events?type=org.aps.scan").json["items"]}
    assert "café" in subjects


BAD = (
    "no signature",
    "wrong key",
    "other body",
    "old",
    "future",
    "github unsigned",
    "no bearer",
    "wrong bearer",
    "no such hook",
    "not JSON",
    "too large",
    "secret not stored",
    "half a CloudEvent",
)


def bad(name: str) -> tuple[str, bytes, dict[str, str], int, str]:
    """Sign on request: a signature is valid for five minutes."""
    return {
        "no signature": ("daq", b"{}", {}, 401, "webhook-id"),
        "wrong key": ("daq", b"{}", signed(b"{}", "m", b"not the key"), 401, "webhook-signature"),
        "other body": ("daq", b"{ }", signed(b"{}", "m"), 401, "webhook-signature"),
        "old": ("daq", b"{}", signed(b"{}", "m", at=time.time() - 3600), 401, "s old"),
        "future": ("daq", b"{}", signed(b"{}", "m", at=time.time() + 3600), 401, "future"),
        "github unsigned": ("forge", b"{}", {}, 401, "X-Hub-Signature-256"),
        "no bearer": ("door", b"{}", {}, 401, "bearer"),
        "wrong bearer": ("door", b"{}", {"Authorization": "Bearer simsim"}, 401, "Authorization"),
        "no such hook": ("dooor", b"{}", {}, 404, "dooor"),
        "not JSON": ("open", b"{", {"Content-Type": "application/json"}, 422, "JSON"),
        "too large": ("open", b"x" * 2_000_000, {"Content-Type": "text/plain"}, 413, "bytes"),
        "secret not stored": ("unset", b"{}", {"Authorization": "Bearer x"}, 503, "nobody-has-stored-it"),
        "half a CloudEvent": ("open", b"{}", {"ce-id": "1", "ce-specversion": "1.0", "ce-type": "t"}, 422, "source"),
    }[name]


@pytest.mark.parametrize("name", BAD)
def test_refused(hooked: System, name: str) -> None:
    trigger, body, headers, status, word = bad(name)
    answer = hook(hooked, trigger, body, headers)
    problem = answer.json
    assert (answer.status, problem["status"]) == (status, status), problem
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert word in problem["detail"]
    assert problem["remedy"]
    assert "sesame" not in answer.body.decode()
    assert "forged" not in answer.body.decode()


def test_a_hook_accepts_only_post(hooked: System) -> None:
    answer = hooked.http("GET", "/hooks/open", token=None)
    assert (answer.status, answer.headers["allow"]) == (405, "OPTIONS, POST")


def test_the_handshake_of_cloudevents(hooked: System) -> None:
    asked = {"WebHook-Request-Origin": "eventemitter.example.com", "WebHook-Request-Rate": "120"}
    answer = hooked.http("OPTIONS", "/hooks/open", headers=asked, token=None)
    assert answer.status == 200
    assert answer.headers["webhook-allowed-origin"] == "eventemitter.example.com"
    assert answer.headers["webhook-allowed-rate"] == "*"
    assert answer.headers["allow"] == "OPTIONS, POST"
    assert hooked.http("OPTIONS", "/hooks/nope", headers=asked, token=None).status == 404


def test_senders_habits(hooked: System) -> None:
    """Forms, parameters in the address, other charsets, an empty batch, and any HMAC."""
    form = b"payload=" + quote_plus('{"ref": "refs/tags/1"}').encode()
    signature = "sha256=" + hmac.new(b"forged", form, hashlib.sha256).hexdigest()
    headers = {"X-Hub-Signature-256": signature, "X-GitHub-Event": "create", "X-GitHub-Delivery": "form-1"}
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    assert hook(hooked, "form", form, headers | kind).status == 202
    shop = {"X-Shop-Sig": base64.b64encode(hmac.digest(b"sold", b'{"n": 1}', "sha512")).decode(), "X-Order": "order-7"}
    assert hook(hooked, "shop?source=a&source=b&%ff", b'{"n": 1}', shop).status == 202
    assert hook(hooked, "shop", b'{"n": 2}', shop).status == 401
    assert hook(hooked, "shop", b"caf\xe9", {"Content-Type": "text/plain; charset=latin-1"}).status == 401
    batch = {"Content-Type": "application/cloudevents-batch+json"}
    assert hook(hooked, "open", b"[]", batch).json == {"accepted": 0}
    emitted = hooked.http("POST", "/v1/events", b"[]", batch)
    assert (emitted.status, emitted.json["count"]) == (202, 0)
    (created,) = hooked.await_tasks(1, rule="on-form")
    assert created["value"] == ["refs/tags/1", "github.create"]
    (sold,) = hooked.await_tasks(1, rule="on-shop")
    assert sold["value"] == [{"n": 1}, "order-7"]


def test_a_text_in_another_charset_and_the_largest_body_are_whole(hooked: System) -> None:
    largest = b"x" * (1 << 20)
    for body, charset in (("caf\xe9".encode("latin-1"), "; charset=latin-1"), (largest, "")):
        assert hook(hooked, "sized", body, {"Content-Type": f"text/plain{charset}"}).status == 202
    assert hook(hooked, "sized", largest + b"x", {"Content-Type": "text/plain"}).status == 413
    found = hooked.await_tasks(2, rule="on-sized")
    assert sorted(t["value"][0] for t in found) == sorted([4, 1 << 20])
    events = hooked.http("GET", "/v1/events?type=oncue.webhook.sized").json["items"]
    assert {e["event"]["data"] for e in events} == {"café", largest.decode()}


def test_a_secret_cannot_name_another_file(hooked: System) -> None:
    """`${secret:../local.json}` must not use the content of a file as the key."""
    hooked.write(
        "sneaky.yaml",
        'triggers:\n  - {name: sneaky, kind: webhook, verify: {bearer: "${secret:../bridge.key}"}}\n',
    )
    output = hooked.oncue("deploy", "sneaky.yaml", "--yes", code=2).stderr
    assert "sneaky.yaml:2:43: trigger sneaky: verify: '../bridge.key' names no secret" in output
    content = (hooked.data / "bridge.key").read_text().strip().splitlines()[0]
    assert hook(hooked, "sneaky", b"{}", {"Authorization": f"Bearer {content}"}).status == 404


def test_a_missing_secret_is_reported_to_the_owner(hooked: System) -> None:
    (found,) = [t for t in hooked.json("triggers", "list") if t["name"] == "unset"]
    assert found["state"] == "failed"
    assert str(hooked.data / "secrets" / "nobody-has-stored-it") in found["detail"]
