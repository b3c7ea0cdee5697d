"""Missing extras: one line names the package to install; the rest works."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from oncue.extras import DEMO, SERVER
from tests.e2e.plain_install import PlainInstall
from tests.e2e.running import System

RULES = """
rules:
  - name: summing
    on: {type: scan.done}
    run: {function: work.py:add, endpoint: local, args: {a: 1}}
"""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> PlainInstall:
    install = PlainInstall(tmp_path_factory.mktemp("plain"))
    (install.folder / "rules.yaml").write_text(RULES)
    (install.folder / "work.py").write_text("def add(a, b=2):\n    return a + b\n")
    (install.folder / "event.json").write_text('{"type": "scan.done", "source": "s", "id": "1"}')
    return install


@pytest.mark.parametrize(
    "words",
    [
        "up",
        "up --detach",
        "deploy rules.yaml --dry-run",
        "rules test rules.yaml",
        "rules explain summing event.json --rules-file rules.yaml",
        "demo",
    ],
)
def test_a_command_without_its_libraries_says_what_to_install(plain: PlainInstall, words: str) -> None:
    done = plain.oncue(*words.split())
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    first, _, last = done.stderr.strip().splitlines()
    assert first.startswith("error: ")
    assert "google-re2" in first
    command = last.strip().removeprefix("→ ")
    assert command.startswith(f"{plain.python} -m pip install ")
    wanted = {*SERVER, *(DEMO if words == "demo" else ())} - {"PyYAML"}
    assert {re.split("[<>=]", word)[0] for word in shlex.split(command)[4:]} == wanted
    assert not (plain.folder / "data" / "server.log").exists()


def test_other_commands_need_no_extra(plain: PlainInstall, shared: System) -> None:
    reached = {"ONCUE_URL": shared.local["url"], "ONCUE_TOKEN": shared.local["token"]}
    for words in ("tasks list", "rules list", "triggers list", "dead list", "functions list", "tokens list --json"):
        done = plain.oncue(*words.split(), env=reached)
        assert done.returncode == 0, done.stderr
    done = plain.oncue("invoke", "work.py:add", "--arg", "a:=40", env=reached)
    assert (done.returncode, done.stdout.strip()) == (0, "42"), done.stderr


def findings(install: PlainInstall, env: dict[str, str]) -> list[dict[str, Any]]:
    """Return doctor's findings, except those of endpoints, which other tests change."""
    found: list[dict[str, Any]] = json.loads(install.oncue("doctor", "--json", env=env).stdout)
    return [f for f in found if not f["check"].startswith("endpoint ")]


def test_doctor_accepts_an_install_for_endpoints(plain: PlainInstall, shared: System) -> None:
    reached = {"ONCUE_URL": shared.local["url"], "ONCUE_TOKEN": shared.local["token"]}
    found = findings(plain, reached)
    assert all(f["ok"] for f in found), found
    (server,) = [f for f in found if f["check"] == "server libraries"]
    assert "endpoints and the client" in server["found"]
    assert "-m pip install watchdog" in server["found"].replace("'", "")
    assert not [f for f in found if f["check"].startswith(("inotify", "port"))]  # those are a server's matters


def test_doctor_reports_a_broken_server_install(tmp_path: Path, shared: System) -> None:
    reached = {"ONCUE_URL": shared.local["url"], "ONCUE_TOKEN": shared.local["token"]}
    broken = PlainInstall(tmp_path, extras=("server",), left_out=("cel-expr-python",))
    wrong = [f for f in findings(broken, reached | {"ONCUE_PORT": "0"}) if not f["ok"]]
    (fault,) = wrong
    assert fault["check"] == "cel-expr-python"
    assert re.fullmatch(r".*/python -m pip install '?cel-expr-python(>=[\d.]+)?'?", fault["remedy"])


def test_doctor_reports_a_former_server(tmp_path: Path, shared: System) -> None:
    reached = {"ONCUE_URL": shared.local["url"], "ONCUE_TOKEN": shared.local["token"]}
    once = PlainInstall(tmp_path)
    (tmp_path / "data" / "log").mkdir(parents=True)
    assert {"google-re2", "watchdog"} < {f["check"] for f in findings(once, reached) if not f["ok"]}
