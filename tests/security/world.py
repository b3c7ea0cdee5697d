"""A server with the objects of one owner, and the tokens of everybody else.

Whatever belongs to the owner carries a marker in its name and its content. An answer to anybody else must hold none
that the request itself did not name.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from oncue.dispatcher.auth.scopes import SCOPES
from tests.e2e.running import System, signalled, system_in

MARKED = re.compile(rb"(?i)zqmark[\w.-]*")
OWNER, STRANGER = "zqmark-owner", "stranger"
CONTENT = b"zqmark-blob " * 40_000
EVENT = {"type": "shared.type", "source": "/shared/source"}  # events are everybody's who may read

WORK = '''
def zqmark_fn(word):
    """zqmark-doc."""
    print("zqmark-output", word)
    return {"zqmark-value": word}
'''
RULES = """
triggers:
  - {name: zqmark-hook, kind: webhook, verify: {bearer: zqmark-sesame}}
  - {name: zqmark-files, kind: file, path: FOLDER, glob: "**/*.raw"}
rules:
  - name: zqmark-rule
    on: {type: shared.type}
    run: {function: zqmark_work.py:zqmark_fn, endpoint: zqmark-ep, args: {word: "${data.word}"}}
  - name: zqmark-broken
    on: {type: shared.broken}
    run: {function: zqmark_work.py:zqmark_fn, endpoint: zqmark-ep, args: {word: "${data.missing}"}}
"""
SPARE = "rules: [{name: NAME, on: {type: never}, run: {function: zqmark_work.py:zqmark_fn, endpoint: zqmark-ep, args: [1]}}]"


class Reply(NamedTuple):
    status: int
    head: bytes
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class World:
    """One server; `ids` are the owner's objects by kind, `tokens` the identities' by (subject, scope)."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.ids: dict[str, str] = {}
        self.tokens: dict[tuple[str, str], str] = {}
        self._fresh = 0

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None,
        headers: Mapping[str, str] | None = None,
        seconds: float = 30.0,
    ) -> Reply:
        """Send a request. What a stream has said after `seconds` is its body."""
        parts = urlsplit(self.system.local["url"])
        given = {"Authorization": f"Bearer {token}"} if token is not None else {}
        if body is not None and not isinstance(body, bytes):
            body, given["Content-Type"] = json.dumps(body).encode(), "application/json"
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        try:
            connection.request(method, path, body, given | dict(headers or {}))
            answer = connection.getresponse()
            return Reply(answer.status, str(answer.headers).encode(), _read(connection, answer, seconds))
        finally:
            connection.close()

    def made(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """Send as the owner, and return the answer's JSON."""
        reply = self.send(method, path, body, token=self.tokens[OWNER, "user"], **options)
        assert reply.status < 300, reply
        return reply.json if reply.body else None

    def token(self, subject: str, scope: str, expires_s: int = 0) -> dict[str, Any]:
        body = {"name": f"{subject}-{scope}", "scopes": [scope], "subject": subject, "expires_s": expires_s}
        reply = self.system.http("POST", "/v1/tokens", body)
        assert reply.status == 201, reply
        return dict(reply.json)

    def fresh(self, kind: str) -> str:
        """Make another object of the owner's, to be ended by a test, and return its name or id."""
        self._fresh += 1
        name = f"zqmark-{kind}-{self._fresh}"
        if kind == "token":
            return str(self.token(OWNER, "read")["id"])
        if kind == "endpoint":
            key = hashlib.sha256(name.encode()).hexdigest()[:40]
            self.made("POST", "/v1/endpoints", {"name": name, "public_key": key})
        elif kind == "task":
            return str(self.made("POST", "/v1/tasks", call("zqmark-idle"))["id"])
        elif kind == "label":
            for text in (SPARE, SPARE + " "):
                files = [{"label": name, "text": text.replace("NAME", name)}]
                functions = {"zqmark_work.py:zqmark_fn": self.ids["function"]}
                self.made("POST", "/v1/rules", {"files": files, "functions": functions})
        elif kind == "dead":
            return self.dead_letter(name)
        return name

    def dead_letter(self, event_id: str) -> str:
        event = EVENT | {"type": "shared.broken", "id": event_id, "data": {}}
        assert self.system.http("POST", "/v1/events", event).status == 202

        def found() -> str:
            letters = self.made("GET", "/v1/dead?limit=1000&all=1")["items"]
            return next((str(d["id"]) for d in letters if d["event"] and d["event"][1] == event_id), "")

        return self.system.await_true(found, "the dead letter")

    def state(self) -> dict[str, Any]:
        """Return what a refused request must not change."""
        tasks = self.system.http("GET", f"/v1/tasks?limit=1000&owner={OWNER}").json["items"]
        lists = {path: self.system.http("GET", path).json for path in ("/v1/rules", "/v1/endpoints", "/v1/triggers")}
        dead = self.system.http("GET", "/v1/dead?all=1&limit=1000").json["items"]
        functions = self.system.http("GET", "/v1/functions?limit=1000").json["items"]
        return {
            "tasks": sorted((t["id"], t["state"]) for t in tasks if t["state"] not in ("waiting", "running")),
            "rules": sorted((r["name"], r["label"], r["version"], r["enabled"]) for r in lists["/v1/rules"]),
            "endpoints": sorted((e["id"], e["name"], e["owner"]) for e in lists["/v1/endpoints"]),
            "triggers": sorted(t["name"] for t in lists["/v1/triggers"]),
            "dead": sorted((d["id"], d["state"]) for d in dead),
            "functions": sorted((f["id"], f["name"], f["version"]) for f in functions),
            "tokens": sorted((t["id"], t["revoked"]) for t in self.system.http("GET", "/v1/tokens").json),
        }

    def leaks(self, reply: Reply, *asked: object) -> list[str]:
        """Return what the answer holds of the owner's and the request did not name."""
        text = reply.head + reply.body
        named = " ".join(a if isinstance(a, str) else json.dumps(a, default=repr) for a in asked)
        marks = {m.decode().rstrip(".-") for m in MARKED.findall(text)}
        secret_ids = {i for i in self.ids.values() if len(i) > 11 and i.encode() in text}
        return sorted(m for m in marks | secret_ids if m.lower() not in named.lower())


def call(endpoint: str = "zqmark-ep") -> dict[str, Any]:
    return {"function": "zqmark_fn", "endpoint": endpoint, "kwargs": {"word": "zqmark-arg"}}


def _read(connection: http.client.HTTPConnection, answer: http.client.HTTPResponse, seconds: float) -> bytes:
    found, deadline = bytearray(), time.monotonic() + seconds
    while not answer.isclosed() and (left := deadline - time.monotonic()) > 0:
        if connection.sock is not None:
            connection.sock.settimeout(left)
        try:
            part = answer.read1(65_536)
        except TimeoutError:
            break
        if not part:
            break
        found += part
    return bytes(found)


@contextlib.contextmanager
def world_in(folder: Path, **settings: str) -> Iterator[World]:
    """Yield a server with everything of the owner's, an agent too."""
    settings["ONCUE_TRIGGER_ROOTS"] = str(folder)  # it watches a folder of a user
    with system_in(folder, "--no-endpoint", **settings) as system:
        world = World(system)
        for subject in (OWNER, STRANGER):
            for scope in SCOPES:
                if (subject, scope) != (OWNER, "admin"):
                    world.tokens[subject, scope] = world.token(subject, scope)["token"]
        revoked = world.token(OWNER, "user")
        system.http("DELETE", f"/v1/tokens/{revoked['id']}")
        world.tokens[OWNER, "revoked"] = revoked["token"]
        world.tokens[OWNER, "expired"] = world.token(OWNER, "user", expires_s=1)["token"]
        agent = _agent(world)
        try:
            _fill(world)
            yield world
        finally:
            signalled(agent, signal.SIGTERM)


def _agent(world: World) -> subprocess.Popen[str]:
    system = world.system
    env = {"ONCUE_URL": system.local["url"], "ONCUE_TOKEN": world.tokens[OWNER, "user"]}
    folder = system.folder / "zqmark-agent"
    system.oncue("endpoint", "register", "zqmark-ep", "--dir", str(folder), "--workers", "1", env=env)
    agent = system.start("endpoint", "start", "zqmark-ep", "--dir", str(folder), env=env)
    system.await_connected("zqmark-ep")
    world.tokens[OWNER, "agent"] = (folder / "agent.key").read_text().split()[-1].strip('"')
    return agent


def _fill(world: World) -> None:
    """Make one object of each kind."""
    system, ids = world.system, world.ids
    env = {"ONCUE_URL": system.local["url"], "ONCUE_TOKEN": world.tokens[OWNER, "user"]}
    watched = system.folder / "zqmark-watched"
    watched.mkdir()
    (watched / "zqmark-old.raw").write_bytes(b"zqmark")
    system.write("zqmark_work.py", WORK)
    system.write("zqmark-label.yaml", RULES.replace("FOLDER", str(watched)))
    system.oncue("deploy", "zqmark-label.yaml", "--yes", env=env)
    ids["function"] = world.made("GET", "/v1/functions/zqmark_fn")["id"]
    ids["endpoint"] = world.made("GET", "/v1/endpoints/zqmark-ep")["id"]
    world.made("POST", "/v1/endpoints", {"name": "zqmark-idle", "public_key": "i" * 40, "labels": {"zqmark-l": "v"}})
    ids["task"] = world.made("POST", "/v1/tasks", call() | {"wait_ms": 30_000})["id"]
    ids["waiting"] = world.made("POST", "/v1/tasks", call("zqmark-idle"))["id"]
    ids["token"] = world.token(OWNER, "read")["id"]
    ids["blob"] = hashlib.sha256(CONTENT).hexdigest()
    world.made("PUT", f"/v1/blobs/{ids['blob']}", CONTENT)
    emitted = EVENT | {"id": "e1", "data": {"word": "shared"}}
    assert system.http("POST", "/v1/events", emitted).status == 202
    ids["dead"] = world.dead_letter("d1")
    system.await_true(lambda: system.tasks(rule="zqmark-rule", state="closed"), "the rule's task")
    found = system.http("GET", "/v1/events?type=shared.type").json["items"]
    ids["offset"] = str(found[0]["offset"])
