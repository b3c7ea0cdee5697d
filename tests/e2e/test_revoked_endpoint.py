"""Revoked endpoints: they say so, stay refused, and come back with new keys."""

from __future__ import annotations

import json
from pathlib import Path

from tests.e2e.running import System


def test_a_revoked_local_endpoint_is_healed_by_register_and_by_a_start(stopped: System) -> None:
    stopped.up("--workers", "1")
    stopped.await_connected()
    key = stopped.data / "endpoints" / "local" / "agent.key"
    first = key.read_text()
    stopped.oncue("endpoints", "revoke", "local", "--yes")
    found = [f for f in stopped.json("doctor", code=1) if f["check"] == "endpoint local"]
    assert [(f["ok"], "oncue endpoint register local" in f["remedy"]) for f in found] == [(False, True)]
    stopped.down()

    stopped.up("--workers", "1")
    stopped.await_connected()
    second = key.read_text()
    assert second != first
    assert all(f["ok"] for f in stopped.json("doctor", code=0) if f["check"] == "endpoint local")

    stopped.oncue("endpoints", "revoke", "local", "--yes")
    stopped.oncue("endpoint", "register", "local", "--workers", "1")
    assert key.read_text() not in (first, second)
    stopped.await_connected()  # the server starts its agent again


def test_the_start_of_a_revoked_endpoint_fails(shared: System, tmp_path: Path) -> None:
    folder = tmp_path / "away"
    shared.oncue("endpoint", "register", "gone", "--dir", str(folder), "--workers", "1")
    shared.oncue("endpoints", "revoke", "gone", "--yes")
    said = shared.oncue("endpoint", "start", "gone", "--dir", str(folder), "--detach", code=1).stderr
    assert "does not know this endpoint's key" in said
    assert f"oncue endpoint register gone --dir {folder}" in said
    status = json.loads(shared.oncue("endpoint", "status", "gone", "--dir", str(folder), "--json").stdout)
    assert not status["running"]
    shared.oncue("endpoint", "register", "gone", "--dir", str(folder), "--workers", "1")
    shared.oncue("endpoint", "start", "gone", "--dir", str(folder), "--detach")
    shared.await_connected("gone")
    assert shared.json("endpoint", "stop", "gone", "--dir", str(folder))["name"] == "gone"
    assert shared.json("endpoints", "revoke", "gone", "--yes")["revoked"]


def test_a_failed_register_leaves_nothing_behind(shared: System, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    shared.oncue("endpoint", "register", "no name", "--dir", str(folder), code=2)
    shared.oncue("endpoint", "register", "fine", "--dir", str(folder), code=5, env={"ONCUE_TOKEN": "wrong"})
    shared.oncue("endpoint", "register", "local", "--dir", str(folder), code=1)
    assert not list(tmp_path.iterdir())
