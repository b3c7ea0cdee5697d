"""Tokens and their scopes, endpoints' keys, and other users' objects."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from oncue.client import Client
from oncue.errors import NotFound, Unauthorized
from tests.e2e.running import PATIENCE_S, System, signalled


def token(system: System, name: str, *scopes: str, subject: str = "", expires_s: int = 0) -> dict[str, Any]:
    body = {"name": name, "scopes": list(scopes) or ["user"], "subject": subject, "expires_s": expires_s}
    answer = system.http("POST", "/v1/tokens", body)
    assert answer.status in (200, 201), answer
    return dict(answer.json)


def test_no_token_and_wrong_ones(shared: System) -> None:
    none = shared.http("GET", "/v1/tasks", token=None)
    assert none.status == 401
    assert none.headers["www-authenticate"].startswith("Bearer")
    assert "`oncue tokens create YOU`" in none.json["remedy"]
    assert "ONCUE_TOKEN" in none.json["remedy"]
    for wrong in ("oncue_" + "x" * 43, "something", "oncue_" + "x" * 5000):
        refused = shared.http("GET", "/v1/tasks", token=wrong)
        assert (refused.status, refused.json["code"]) == (401, "unauthorized")
        assert wrong not in refused.body.decode()
    output = shared.oncue("tasks", "list", env={"ONCUE_URL": shared.local["url"], "ONCUE_TOKEN": "oncue_wrong"}, code=5)
    assert "not known" in output.stderr
    assert "→" in output.stderr
    assert shared.http("GET", "/health/live", token=None).status == 200
    assert shared.http("GET", "/metrics", token=None).status == 401


def test_a_revoked_token_is_refused_at_once_and_ends_its_streams(shared: System) -> None:
    made = token(shared, "short-lived")
    env = {"ONCUE_URL": shared.local["url"], "ONCUE_TOKEN": made["token"]}
    tail = shared.start("tasks", "tail", env=env)
    assert shared.http("GET", "/v1/me", token=made["token"]).status == 200
    shared.oncue("tokens", "revoke", made["id"])
    refused = shared.http("GET", "/v1/me", token=made["token"])
    assert (refused.status, "revoked" in refused.json["detail"]) == (401, True)
    assert "ask an admin of this server" in refused.json["remedy"]
    _, err = tail.communicate(timeout=PATIENCE_S)  # its stream was cut
    assert tail.returncode in (3, 5), err
    assert "Traceback" not in err
    with Client(shared.local["url"], made["token"], patience=5) as client, pytest.raises(Unauthorized):
        client.submit(pow, 2, 2).result(PATIENCE_S)
    shared.oncue("tokens", "revoke", "no-such", code=4)


def test_an_expired_token(shared: System) -> None:
    made = token(shared, "brief", expires_s=1)
    began = time.monotonic()
    shared.await_true(
        lambda: shared.http("GET", "/v1/me", token=made["token"]).status == 401, "the token has expired", 10
    )
    assert time.monotonic() - began > 0.5
    assert "expired" in shared.http("GET", "/v1/me", token=made["token"]).json["detail"]


CALL = {"function": "f"}
EVENT = {"type": "a", "source": "/b"}
SCOPES: list[tuple[str, str, str, Any, int]] = [
    ("emit", "POST", "/v1/events", EVENT, 202),
    ("emit", "GET", "/v1/events", None, 403),
    ("emit", "POST", "/v1/tasks", CALL, 403),
    ("emit", "GET", "/v1/me", None, 200),
    ("read", "GET", "/v1/tasks", None, 200),
    ("read", "POST", "/v1/events", EVENT, 403),
    ("read", "POST", "/v1/tasks", CALL, 403),
    ("read", "POST", "/v1/tasks/cancel", {"tasks": []}, 403),
    ("read", "POST", "/v1/rules", {"files": []}, 403),
    ("read", "POST", "/v1/tokens", {"name": "x"}, 403),
    ("read", "DELETE", "/v1/endpoints/local", None, 403),
    ("user", "POST", "/v1/tokens", {"name": "x", "scopes": ["admin"]}, 403),
    ("user", "POST", "/v1/tokens", {"name": "x", "subject": "somebody"}, 403),
    ("user", "POST", "/v1/tokens", {"name": "x", "scopes": ["all"]}, 422),
]


@pytest.mark.parametrize(("scope", "method", "path", "body", "status"), SCOPES)
def test_scopes(shared: System, scope: str, method: str, path: str, body: Any, status: int) -> None:
    made = token(shared, f"scope {scope}", scope)
    answer = shared.http(method, path, body, token=made["token"])
    assert answer.status == status, answer
    if status == 403:
        assert answer.json["remedy"]


def test_a_token_cannot_create_a_token_with_more_scopes(shared: System) -> None:
    """A user's token creates no admin token, and only tokens of its own subject."""
    made = token(shared, "mine", "user", subject="alice")
    child = shared.http("POST", "/v1/tokens", {"name": "child"}, token=made["token"]).json
    assert child["subject"] == "alice"


def test_other_users_objects_are_not_found(shared: System, tmp_path: Path) -> None:
    shared.write("private.py", "def secret(word):\n    print(word)\n    return word\n")
    task = shared.json("invoke", "private.py:secret", "--arg", "word=hunter2")["id"]
    alice = token(shared, "alice", "user", subject="alice")["token"]

    def asked(method: str, path: str, body: Any = None) -> Any:
        return shared.http(method, path, body, token=alice)

    assert asked("GET", "/v1/tasks").json["items"] == []
    assert asked("GET", "/v1/endpoints").json == []
    assert asked("GET", "/v1/rules").json == []
    for path in ("", "/timeline", "/logs"):
        answer = asked("GET", f"/v1/tasks/{task}{path}")
        assert answer.status == 404, (path, answer)
        assert b"hunter2" not in answer.body
    assert asked("POST", f"/v1/tasks/{task}/retry", {}).status == 404
    assert asked("POST", f"/v1/tasks/{task}/cancel", {}).status == 404
    assert asked("POST", "/v1/tasks/cancel", {"tasks": [task]}).status == 404
    assert asked("POST", "/v1/tasks/outcomes", {"ids": [task]}).json == []
    assert asked("GET", f"/v1/tasks?owner={shared.http('GET', '/v1/me').json['subject']}").json["items"] == []
    refused = asked("POST", "/v1/tasks", {"function": "secret", "endpoint": "local"})
    assert refused.status in (403, 404)
    endpoint = shared.http("GET", "/v1/endpoints/local").json["id"]
    refused = asked("POST", "/v1/tasks", {"function": "secret", "endpoint": endpoint})
    assert refused.status in (403, 404)
    for path in ("/v1/tokens", "/v1/functions"):
        assert b"hunter2" not in asked("GET", path).body
    with Client(shared.local["url"], alice, patience=5) as client:
        with pytest.raises(NotFound):
            client.tasks.get(task)
        with pytest.raises(NotFound):
            client.submit(pow, 2, 2).result(PATIENCE_S)  # she has no endpoint "local"


# ---------------------------------------------------------------- endpoints


def test_an_endpoint_with_an_unregistered_key_is_refused(shared: System, tmp_path: Path) -> None:
    folder = tmp_path / "stranger"
    shared.oncue("endpoint", "register", "stranger", "--dir", str(folder), "--workers", "1")
    from oncue.curve import load_or_make_keys

    (folder / "agent.key").unlink()
    load_or_make_keys(folder / "agent.key")  # another pair
    agent = shared.start("endpoint", "start", "stranger", "--dir", str(folder))
    try:
        assert agent.stderr is not None
        assert "does not know this endpoint's key" in agent.stderr.readline()
    finally:
        signalled(agent, signal.SIGTERM)
    assert agent.returncode == 0  # stopped before its timeout of 20 s, in which a server may still start
    assert shared.http("GET", "/v1/endpoints/stranger").json["state"] == "never"


def test_a_revoked_endpoint_is_disconnected_and_its_name_can_be_reused(shared: System, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shared.oncue("endpoint", "register", "laptop", "--dir", str(folder), "--workers", "1")
    agent = shared.start("endpoint", "start", "laptop", "--dir", str(folder))
    shared.await_connected("laptop")
    again = shared.oncue("endpoint", "register", "laptop", "--dir", str(tmp_path / "new"), code=1)
    assert "another key" in again.stderr
    shared.oncue("endpoints", "revoke", "laptop", "--yes")
    _, err = agent.communicate(timeout=PATIENCE_S)
    assert agent.returncode not in (0, None), err
    assert "Traceback" not in err
    shared.oncue("invoke", "print", "--endpoint", "laptop", code=4)
    shared.oncue("endpoint", "register", "laptop", "--dir", str(tmp_path / "new"), "--workers", "1")
    agent = shared.start("endpoint", "start", "laptop", "--dir", str(tmp_path / "new"))
    try:
        shared.await_connected("laptop")
        with shared.client() as client:
            assert client.submit(pow, 2, 4, endpoint="laptop").result(PATIENCE_S) == 16
    finally:
        _, err = signalled(agent, signal.SIGINT)
        shared.oncue("endpoints", "revoke", "laptop", "--yes")
    assert "Traceback" not in err


def test_a_token_created_before_the_first_start(stopped: System) -> None:
    file = stopped.write("secret", "not a token")
    stopped.env["ONCUE_ADMIN_TOKEN_FILE"] = str(file)
    output = stopped.oncue("up", "--detach", "--port", "0", "--no-endpoint", code=1)
    assert "token_urlsafe" in output.stderr
    given = "oncue_" + "g" * 43
    file.write_text(given + "\n")
    stopped.up("--no-endpoint")
    who = stopped.http("GET", "/v1/me", token=given)
    assert who.status == 200
    assert "admin" in who.json["scopes"]
    known = [t for t in stopped.http("GET", "/v1/tokens", token=given).json if t["name"] == "given"]
    stopped.down()
    stopped.up("--no-endpoint")
    again = [t for t in stopped.http("GET", "/v1/tokens", token=given).json if t["name"] == "given"]
    assert again == known
    assert len(known) == 1
    stopped.oncue("tokens", "revoke", known[0]["id"])
    stopped.down()
    stopped.up("--no-endpoint")
    assert stopped.http("GET", "/v1/me", token=given).status == 401, "a start does not make it good again"
