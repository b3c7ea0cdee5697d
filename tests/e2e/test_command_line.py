"""The command line against a real server, agent and workers.

`oncue up --detach` starts them, `oncue down` ends them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from oncue.client import Client

SOURCE = """
def add(a, b=2):
    print("adding")
    return a + b

def bad(x):
    raise ValueError("no [/scan] \\x1b[31m")

def pair(a):
    return (a, {a})
"""
RULES = """
rules:
  - name: summing
    on: {type: scan.done}
    match: {data.n: {gt: 3}}
    run: {function: work.py:add, endpoint: local, args: {a: "${data.n}"}}
    tests:
      - {event: {type: scan.done, data: {n: 5}}, expect: {fires: true, args: {a: 5}}}
      - {event: {type: scan.done, data: {n: 1}}, expect: {fires: false}}
"""


class Shell:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("ONCUE_")} | {
            "ONCUE_DATA": str(folder / "data")
        }
        (folder / "work.py").write_text(SOURCE)
        (folder / "rules.yaml").write_text(RULES)

    def __call__(self, *words: str, code: int = 0, given: str = "") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "oncue", *words],
            cwd=self.folder,
            env=self.env,
            input=given,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return done


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    shell = Shell(tmp_path_factory.mktemp("cli"))
    shell("up", "--port", "0", "--workers", "1", "--detach")
    pid = json.loads((shell.folder / "data" / "local.json").read_text())["pid"]
    try:
        yield shell
    finally:
        try:
            shell("down")
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            raise


def test_invoke_and_show(shell: Shell) -> None:
    assert shell("invoke", "work.py:add", "--arg", "a:=40").stdout == "42\n"
    found = json.loads(shell("invoke", "work.py:add", "--arg", "a:=1", "--json").stdout)
    assert found["state"] == "succeeded"
    assert found["value"] == 3
    assert shell("tasks", "logs", found["id"]).stdout == "adding\n"
    shown = json.loads(shell("tasks", "show", found["id"], "--json").stdout)
    assert shown["task"]["id"] == found["id"]
    assert found["id"] in shell("tasks", "list").stdout
    assert shell("invoke", "add", "--arg", "a=x", "--arg", "b=y").stdout == "xy\n"  # by its registered name
    assert shell("invoke", "work.py:pair", "--arg", "a=\x1b[2J").stdout == "('\\x1b[2J', {'\\x1b[2J'})\n"
    found = json.loads(shell("invoke", "work.py:pair", "--arg", "a:=1", "--json").stdout)
    assert found["value"] == [1, [1]]
    assert json.loads(shell("tasks", "show", found["id"], "--json").stdout)["task"]["value"] == [1, [1]]
    assert "value:     (1, {1})" in shell("tasks", "show", found["id"]).stdout
    reader = shell("tokens", "create", "--name", "reader", "--scope", "read").stdout.strip()
    shell.env["ONCUE_TOKEN"] = reader  # may not read outcomes: it gets the value that the server shows
    assert "value:     a pickled value of" in shell("tasks", "show", found["id"]).stdout
    del shell.env["ONCUE_TOKEN"]


def test_a_failure_is_printed_without_markup_or_escapes(shell: Shell) -> None:
    done = shell("invoke", "work.py:bad", "--arg", "x=1", code=1)
    assert "no [/scan] \\x1b[31m" in done.stderr
    assert "\x1b" not in done.stderr
    assert 'work.py", line 7, in bad' in done.stderr
    assert "oncue/client/client.py" not in done.stderr
    assert "no [/scan] \\x1b[31m" in shell("tasks", "list", "--state", "failed").stdout


def test_deploy_and_fire(shell: Shell) -> None:
    assert "2 of 2 tests passed" in shell("rules", "test", "rules.yaml").stderr
    shell("deploy", "rules.yaml", code=2)  # nobody can be asked
    shell("deploy", "rules.yaml", "--dry-run")
    assert json.loads(shell("rules", "list", "--json").stdout) == []
    assert "rules@1 is in force" in shell("deploy", "rules.yaml", "--yes").stdout
    assert "no change" in shell("deploy", "rules.yaml", "--yes").stdout
    shell("rules", "diff", "rules.yaml")
    shell("events", "emit", "--type", "scan.done", "--source", "/2bm", "--data", '{"n": 7}')
    deadline = time.monotonic() + 20
    while not (found := json.loads(shell("tasks", "list", "--rule", "summing", "--state", "closed", "--json").stdout)):
        assert time.monotonic() < deadline
    assert found[0]["value"] == 9
    (shell.folder / "small.json").write_text('{"type": "scan.done", "data": {"n": 1}}')
    assert "does not fire" in shell("rules", "explain", "summing", "small.json").stdout
    assert "does not fire" in shell("rules", "explain", "summing", "small.json", "--rules-file", "rules.yaml").stdout
    (shell.folder / "rules2.yaml").write_text(RULES.replace("gt: 3", "gt: 4"))
    differs = shell("rules", "diff", "rules2.yaml", "--label", "rules", "--json", code=1)
    assert json.loads(differs.stdout)["changed"] is True
    assert json.loads(shell("rules", "diff", "rules.yaml", "--json").stdout)["diff"] == ""
    assert json.loads(shell("rules", "disable", "summing", "--json").stdout)["enabled"] is False
    assert json.loads(shell("rules", "enable", "summing", "--json").stdout)["state"] == "active"
    shell("rules", "disable", "summing", "--why", "lunch")
    assert json.loads(shell("rules", "show", "summing", "--json").stdout)["enabled"] is False
    assert len(json.loads(shell("rules", "history", "rules", "--json").stdout)) == 1
    assert json.loads(shell("rules", "remove", "rules", "--yes", "--json").stdout)["removed"] == ["summing"]


def test_an_error_in_a_rule_file_names_its_position(shell: Shell) -> None:
    (shell.folder / "wrong.yaml").write_text(
        "rules:\n  - name: a\n    onn: {type: x}\n    run: {function: f, endpoint: local}\n"
    )
    assert "wrong.yaml:3:" in shell("deploy", "wrong.yaml", "--yes", code=2).stderr


def test_errors_have_codes_and_remedies(shell: Shell, tmp_path: Path) -> None:
    assert "→" in shell("tasks", "show", "0" * 32, code=4).stderr
    assert "is not name=text" in shell("invoke", "add", "--arg", "x", code=2).stderr
    assert "runs already" in shell("up", code=1).stderr
    assert "Did you mean 'tasks'" in shell("task", code=2).stderr
    other = Shell(tmp_path)
    assert "oncue up" in other("tasks", "list", code=3).stderr
    other("down", code=4)


def test_functions_show_says_how_a_functions_tasks_are_run(shell: Shell) -> None:
    (shell.folder / "flat.txt").write_text("flat")
    options = ("--fresh", "--detached", "--memory", "2GB", "--file", "flat.txt")
    (made,) = json.loads(shell("functions", "register", "work.py:pair", *options, "--json").stdout)

    found = json.loads(shell("functions", "show", made["id"], "--json").stdout)["properties"]
    assert (found["fresh"], found["detached"], found["memory_bytes"]) == (True, True, 2_000_000_000)
    assert found["files"] == ["flat.txt"]
    shown = shell("functions", "show", made["id"]).stdout
    for text in ("fresh:", "detached:", "flat.txt", "2 GB"):
        assert text in shown
    (plain,) = json.loads(shell("functions", "register", "work.py:add", "--json").stdout)
    assert "fresh:" not in shell("functions", "show", plain["id"]).stdout


def test_doctor_and_endpoint(shell: Shell) -> None:
    assert shell("invoke", "work.py:add", "--arg", "a:=1").stdout == "3\n"  # its agent is there
    found = json.loads(shell("endpoint", "status", "--json").stdout)
    assert found["running"]
    endpoints = json.loads(shell("endpoints", "list", "--json").stdout)
    assert [(e["name"], e["state"]) for e in endpoints] == [("local", "connected")]
    done = subprocess.run(
        [sys.executable, "-m", "oncue", "doctor", "--json"], env=shell.env, capture_output=True, text=True, timeout=60
    )
    checks = {c["check"]: c["ok"] for c in json.loads(done.stdout)}
    assert checks["server"]
    assert checks["endpoint local"]


def test_a_value_of_a_class_of_the_file(shell: Shell) -> None:
    (shell.folder / "shapes.py").write_text(
        "print('imported')\n"
        "class Scan:\n"
        "    def __init__(self, n): self.n = n\n"
        "    def __repr__(self): return f'Scan({self.n})'\n"
        "def scan(n): return Scan(n)\n"
    )
    done = shell("invoke", "shapes.py:scan", "--arg", "n:=3")
    assert done.stdout == "Scan(3)\n"
    assert "does not have" not in done.stderr


def test_a_dead_agent_is_started_again(shell: Shell) -> None:
    pid = json.loads(shell("endpoint", "status", "--json").stdout)["pid"]
    os.kill(pid, signal.SIGKILL)
    assert shell("invoke", "work.py:add", "--arg", "a:=2").stdout == "4\n"
    assert json.loads(shell("endpoint", "status", "--json").stdout)["pid"] != pid


def test_the_python_client(shell: Shell) -> None:
    with Client(data=shell.folder / "data") as client:
        assert client.gather(client.map(lambda x: x * 2, range(3000)), timeout=60) == [2 * i for i in range(3000)]
        big = b"\xfe" * 1_000_000
        assert client.submit(lambda b: b + b, big).result(60) == big + big
        with client.executor() as executor:
            assert list(executor.map(pow, range(50), [2] * 50)) == [n * n for n in range(50)]
            with pytest.raises(ZeroDivisionError):
                executor.submit(lambda: 1 // 0).result(60)


def test_tokens(shell: Shell) -> None:
    made = json.loads(shell("tokens", "create", "daq", "--scope", "emit", "--expires", "30d", "--json").stdout)
    assert made["token"]
    assert made["token"] not in shell("tokens", "list", "--json").stdout
    revoked = json.loads(shell("tokens", "revoke", made["id"], "--json").stdout)
    assert (revoked["id"], revoked["revoked"], revoked["endpoints"]) == (made["id"], True, [])
    assert [(t["id"], t["revoked"]) for t in revoked["tokens"]] == [(made["id"], True)]


def test_help_of_every_command_has_an_example() -> None:
    import click

    from oncue.cli.root import root

    def walk(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
        yield name, command
        if isinstance(command, click.Group):
            for sub in command.list_commands(click.Context(command)):
                found = command.get_command(click.Context(command), sub)
                assert found is not None
                yield from walk(found, f"{name} {sub}")

    missing = [name for name, command in walk(root, "oncue") if "Example:\n" not in (command.help or "")]
    assert missing == []
