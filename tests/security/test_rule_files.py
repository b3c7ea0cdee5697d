"""Rule files that are made to be dear, and large honest ones: the server goes on answering."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

from bench.sizes import write_rules
from oncue.strict_yaml.document import SHOWN
from tests.e2e.running import System, system_in
from tests.security.stall import check_no_stall
from tests.unit.rules.parsing.test_hostile_files import HOSTILE

RULES = 10_000
SHARED: dict[str, dict[str, Any]] = {
    "fields": {f"data.a{n}": 1 for n in range(300)},
    "lists": {f"data.a{n}": list(range(100)) for n in range(6)},
}
CPU_S = 20.0  # of the server, for a deploy of 10,000 rules: it takes 3.5


@pytest.fixture(scope="module")
def system(system: System) -> System:
    register_endpoint(system)
    return system


def register_endpoint(system: System) -> None:
    """Register the endpoint that the rules name; no agent runs it."""
    body = {"name": "local", "public_key": zmq.curve_keypair()[0].decode()}
    assert system.http("POST", "/v1/endpoints", body).status < 300


def post(system: System, *texts: str, dry_run: bool = True) -> int:
    files = [{"label": f"f{n}", "text": text} for n, text in enumerate(texts)]
    answer = system.http("POST", "/v1/rules", {"files": files, "dry_run": dry_run})
    if answer.status != 200:
        assert answer.status == 422, answer
        assert len(answer.json["details"].get("problems", ())) <= SHOWN
        assert len(answer.body) < 300_000
    return answer.status


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_rule_file_does_not_stall_the_server(system: System, name: str) -> None:
    check_no_stall(system.local["url"], lambda: post(system, HOSTILE[name]))


@pytest.mark.parametrize("name", SHARED)
def test_rules_that_share_many_fields_do_not_end_the_server(system: System, name: str) -> None:
    """They were deployed, and then the server could not index them: it ended, and did not start again."""
    function = system.json("functions", "register", str(system.write("shared.py", "def fn(*args): ...")) + ":fn")
    rules = [_shared(f"{name}-{n}", SHARED[name]) for n in range(6)]
    files = [{"label": name, "text": json.dumps({"rules": rules})}]

    def deploy() -> None:
        answer = system.http("POST", "/v1/rules", {"files": files, "functions": {"fn": function[0]["id"]}})
        assert answer.status == 200, answer

    check_no_stall(system.local["url"], deploy)
    system.server.kill()
    system.up("--no-endpoint")
    event = {"type": "t", "source": "/s", "data": {f"a{n}": 1 for n in range(300)}}
    assert system.http("POST", "/v1/events", event).status == 202
    system.await_true(lambda: system.tasks(rule=f"{name}-5"), "the rules fire")


def _shared(name: str, match: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "on": {"type": "t"}, "match": match, "run": {"function": "fn", "args": [1]}}


def test_several_hostile_rule_files_at_once_do_not_stall_the_server(system: System) -> None:
    texts = [HOSTILE["many regexes"], HOSTILE["a test of much data"], HOSTILE["many conditions"]]
    check_no_stall(system.local["url"], lambda: post(system, *texts))


def test_a_diff_of_unlike_large_files_does_not_stall_the_server(system: System) -> None:
    end = "rules: []\n"
    lines = [f"# {n} {n % 900}\n# {n % 900}\n" for n in range(30_000)]
    one, other = "".join(lines)[: 10**6] + "\n" + end, "".join(reversed(lines))[: 10**6] + "\n" + end
    assert post(system, one, dry_run=False) == 200

    check_no_stall(system.local["url"], lambda: post(system, other))

    (answer,) = system.http("POST", "/v1/rules", {"files": [{"label": "f0", "text": other}], "dry_run": True}).json
    assert "too many to show" in answer["diff"]


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def test_a_deploy_of_10_000_rules_and_a_restart_with_them(tmp_path: Path) -> None:
    with system_in(tmp_path, "--no-endpoint") as system:
        register_endpoint(system)
        names = write_rules(system.folder, RULES)
        before = cpu_s(system.server)
        tries = 0

        def deploy() -> None:
            nonlocal tries
            tries += 1
            system.oncue("deploy", *names, "--yes", "--note", str(tries))

        check_no_stall(system.local["url"], deploy)
        assert cpu_s(system.server) - before < tries * CPU_S
        check_no_stall(system.local["url"], lambda: system.http("GET", "/v1/rules"))
        check_no_stall(system.local["url"], lambda: system.http("POST", "/v1/rules/r7/disable", {"why": "x"}))
        system.server.kill()
        system.up("--no-endpoint")

        assert cpu_s(system.server) < CPU_S
        rules = json.loads(system.http("GET", "/v1/rules").body)
        assert len(rules) == RULES
        assert {r["state"] for r in rules if r["name"] != "r7"} == {"active"}
