"""`oncue endpoint`, `oncue down` and `oncue doctor` on a machine with endpoints."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from oncue import curve
from oncue.protocol.api import EndpointRequest
from tests.e2e.running import System, has_ended


def settings(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "agent.json").read_text()))


def test_registering_again_changes_only_the_given_options(shared: System, tmp_path: Path) -> None:
    folder = tmp_path / "lab"
    register = ("endpoint", "register", "again", "--dir", str(folder))
    where = "tcp://127.0.0.1:9"
    first = shared.json(
        *register,
        "--workers",
        "3",
        "--label",
        "site=lab",
        "--label",
        "gpu=a100",
        "--lost-after",
        "10m",
        "--bridge",
        where,
    )

    def now() -> tuple[Any, ...]:
        found = shared.json("endpoints", "show", "again")
        assert found["id"] == first["id"]
        return settings(folder)["workers"], found["labels"], found["lost_after_ms"], settings(folder)["bridge"]

    both = {"site": "lab", "gpu": "a100"}
    shared.oncue(*register)
    assert now() == (3, both, 600_000, where)
    shared.oncue(*register, "--workers", "0")
    assert now() == (0, both, 600_000, where)
    shared.oncue(*register, "--lost-after", "0")
    assert now() == (0, both, 0, where)
    shared.oncue(*register, "--label", "site=hall")
    assert now() == (0, {"site": "hall"}, 0, where)
    shared.oncue(*register, "--no-labels", "--lost-after", "30s", "--bridge", "")
    assert now() == (0, {}, 30_000, shared.local["bridge"])
    shared.oncue(*register, "--no-labels", "--label", "a=b", code=2)

    # The same by the API: null and left out are one thing, 0 and {} another.
    key = json.loads((folder / "agent.key").read_text())["public"]
    with shared.client() as client:
        client.endpoints.register(EndpointRequest(name="again", public_key=key, labels={"a": "b"}))
        assert now()[1:3] == ({"a": "b"}, 30_000)
        client.endpoints.register(EndpointRequest(name="again", public_key=key, labels={}, lost_after_ms=0))
        assert now()[1:3] == ({}, 0)
    shared.oncue("endpoints", "revoke", "again", "--yes")


def test_the_last_status_of_a_killed_agent_is_not_shown_as_current(shared: System, tmp_path: Path) -> None:
    place = ("brief", "--dir", str(tmp_path / "brief"))
    shared.oncue("endpoint", "register", *place, "--workers", "1")
    shared.oncue("endpoint", "start", *place, "--detach")
    shared.await_connected("brief")
    status = shared.json("endpoint", "status", *place)["status"]
    assert (status["state"], status["current"]) == ("connected", True)
    assert "does not run" not in shared.oncue("endpoint", "status", *place).stderr
    agent = psutil.Process(int((tmp_path / "brief" / "lock").read_text()))
    for process in (*agent.children(recursive=True), agent):
        process.kill()
    psutil.wait_procs([agent], 10)
    shared.await_true(lambda: not shared.json("endpoint", "status", *place)["running"], "it is gone")
    status = shared.json("endpoint", "status", *place)["status"]
    assert (status["state"], status["current"]) == ("connected", False)
    assert status["written_us"] > 0
    assert "does not run any more:" in shared.oncue("endpoint", "status", *place).stderr
    shared.oncue("endpoints", "revoke", "brief", "--yes")


def test_doctor_checks_the_callers_own_endpoints(shared: System) -> None:
    """An admin's doctor checks those of other users, too."""
    made = shared.json("tokens", "create", "ann")
    key = curve.make_keys().public.decode()
    answer = shared.http("POST", "/v1/endpoints", {"name": "anns", "public_key": key}, token=made["token"])
    assert answer.status < 300
    assert "anns" in [e["name"] for e in shared.json("endpoints", "list")]
    done = shared.oncue("doctor", "--json", code=None)  # other tests' endpoints may be away
    assert not [c for c in json.loads(done.stdout) if "anns" in c["check"]]
    assert shared.http("DELETE", "/v1/endpoints/anns", token=made["token"]).status < 300
    shared.oncue("tokens", "revoke", made["id"])


def test_a_new_lost_after_is_in_force_at_once(shared: System, tmp_path: Path) -> None:
    register = ("endpoint", "register", "soon", "--dir", str(tmp_path / "soon"), "--workers", "1")
    shared.oncue(*register)
    shared.oncue("endpoint", "start", "soon", "--dir", str(tmp_path / "soon"), "--detach")
    shared.await_connected("soon")
    shared.write("slow.py", "def slow():\n    import time\n    time.sleep(600)\n")
    task = shared.json("invoke", "slow.py:slow", "--endpoint", "soon", "--no-wait")["id"]
    shared.await_true(lambda: shared.json("tasks", "show", task)["task"]["state"] == "running", "it runs")
    shared.oncue(*register, "--lost-after", "100ms")
    agent = psutil.Process(int((tmp_path / "soon" / "lock").read_text()))
    for process in (*agent.children(recursive=True), agent):
        process.kill()
    shared.await_true(lambda: shared.json("tasks", "show", task)["task"]["state"] == "lost", "it is lost")
    shared.oncue("endpoints", "revoke", "soon", "--yes")


def test_the_local_endpoint_stays_stopped_until_it_is_started(stopped: System) -> None:
    stopped.up("--workers", "1")
    stopped.await_connected()
    (agent,) = [p for p in stopped.server.children() if "oncue.endpoint.run" in p.cmdline()]
    output = stopped.oncue("endpoint", "stop", "local").stdout
    assert f"pid {agent.pid}" in output
    assert "stays stopped until `oncue endpoint start local`" in output
    stopped.await_true(lambda: "to start it: oncue endpoint start local" in stopped.said(), "the server logs it")
    assert not stopped.server.children()
    stopped.oncue("endpoint", "stop", "local")  # again is harmless
    assert stopped.json("endpoint", "status", "local")["held"] is True
    assert "held:" in stopped.oncue("endpoint", "status", "local").stdout
    stopped.down()
    output = stopped.oncue("up", "--detach", "--port", "0", "--workers", "1").stdout
    stopped.note()
    assert "was stopped by hand" in output
    assert not stopped.server.children()
    stopped.oncue("endpoint", "start", "local", "--detach")
    stopped.await_connected()
    (pid,) = [int(w) for w in (stopped.data / "endpoints" / "local" / "lock").read_text().split()]
    assert stopped.json("endpoint", "status", "local")["held"] is False
    assert "held:" not in stopped.oncue("endpoint", "status", "local").stdout
    own = psutil.Process(pid)
    own.kill()  # now it is kept again
    stopped.await_true(lambda: stopped.server.children(), "the server starts it again")
    stopped.await_connected()


def test_down_ends_the_agent_that_a_killed_server_left(stopped: System) -> None:
    stopped.up("--workers", "1")
    agent = next(p for p in stopped.agent_and_workers() if "oncue.endpoint.run" in p.cmdline())
    os.kill(stopped.server.pid, signal.SIGKILL)
    stopped.await_true(lambda: agent.is_running() and stopped.server not in stopped.left(), "the agent lives on")
    output = stopped.oncue("down").stdout
    assert f"pid {agent.pid}" in output
    assert has_ended(agent)
    assert "no server runs" in stopped.oncue("down", code=4).stderr


@pytest.mark.embedded
def test_doctor_checks_no_port_on_a_machine_with_endpoints_only(shared: System, tmp_path: Path) -> None:
    home = {
        "ONCUE_DATA": str(tmp_path / "home"),
        "ONCUE_URL": shared.local["url"],
        "ONCUE_TOKEN": shared.local["token"],
    }

    def checks() -> set[str]:
        done = shared.oncue("doctor", "--json", env=home, code=None)  # other tests' endpoints may be away
        return {c["check"] for c in json.loads(done.stdout)}

    assert "port" in checks()
    shared.oncue("endpoint", "register", "homely", env=home)
    done = shared.oncue("doctor", "--json", env=home, code=1)  # its agent does not run
    found = {c["check"] for c in json.loads(done.stdout)}
    assert "port" not in found
    assert "server" in found
    shared.oncue("endpoints", "revoke", "homely", "--yes")


def test_an_invalid_key_is_not_recorded(shared: System) -> None:
    """A server with an invalid key in its registry could not start."""
    for key in ("~" * 40, "x" * 39, ""):
        answer = shared.http("POST", "/v1/endpoints", {"name": "no-key", "public_key": key})
        assert (answer.status, answer.json["code"]) == (422, "invalid"), key
        assert "public_key: not a CURVE public key" in answer.json["detail"]
    assert "no-key" not in [e["name"] for e in shared.json("endpoints", "list")]
