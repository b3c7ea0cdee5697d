"""Runs the trigger kind of docs/extending.md from rule file to outcome.

The kind is one class and one entry in the catalogue. Nothing else in oncue names it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.running import PATIENCE_S, System

#: `python -m oncue` with the kind in the catalogue.
ONCUE = f"""
import runpy, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from oncue.triggers.catalog import KINDS
from tests.extending import module
module("counter")
KINDS["counter"] = "counter:CounterTrigger"
runpy.run_module("oncue", run_name="__main__", alter_sys=True)
"""
RULES = """
triggers:
  - {{name: numbers, kind: counter, up_to: {up_to}}}
rules:
  - name: square
    on: numbers
    run: {{function: "work.py:square", endpoint: local, args: {{n: "${{data.number}}"}}}}
"""
WORK = "def square(n):\n    return n * n\n"


class Site:
    """A system whose commands and server have the kind in their catalogue."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.server: subprocess.Popen[bytes] | None = None

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-c", ONCUE, *words]

    def start(self) -> None:
        (self.system.data / "local.json").unlink(missing_ok=True)
        with (self.system.folder / "server.txt").open("ab") as output:
            self.server = subprocess.Popen(
                self.command("up", "--port", "0", "--workers", "1"),
                cwd=self.system.folder,
                env=self.system.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self.system.await_true(lambda: self.system.http("GET", "/v1/endpoints/local").status == 200, "the server is up")
        self.system.await_connected()
        self.system.note()

    def kill(self) -> None:
        assert self.server is not None
        self.system.note()
        self.server.send_signal(signal.SIGKILL)
        self.server.wait(PATIENCE_S)

    def oncue(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            self.command(*words),
            cwd=self.system.folder,
            env=self.system.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def deploy(self, up_to: object, code: int = 0) -> str:
        self.system.write("work.py", WORK)
        self.system.write("count.yaml", RULES.format(up_to=up_to))
        return self.oncue("deploy", "count.yaml", "--yes", code=code)

    def squares(self, count: int) -> list[int]:
        return sorted(task["value"] for task in self.system.await_tasks(count, rule="square"))


@pytest.fixture
def site(stopped: System) -> Iterator[Site]:
    found = Site(stopped)
    try:
        yield found
    finally:
        if found.server is not None:
            found.server.terminate()
            found.server.wait(PATIENCE_S)


def test_a_new_kind_from_its_rule_file_to_outcomes(site: Site) -> None:
    site.start()
    site.deploy(3)
    assert site.squares(3) == [1, 4, 9]

    # Its item is explained, and its decisions are shown, by the interface alone.
    assert site.oncue("triggers", "explain", "numbers", "2").strip() == "2: fired: it was counted"
    assert site.oncue("triggers", "explain", "numbers", "7").strip() == "7: not seen: the count is 3"
    shown = site.oncue("triggers", "show", "numbers")
    assert "counter" in shown
    assert "running" in shown
    assert "counted" in shown

    # Each number is one task, through a kill and a deploy that counts further.
    site.kill()
    site.start()
    site.deploy(5)
    assert site.squares(5) == [1, 4, 9, 16, 25]


@pytest.mark.embedded
def test_a_new_kinds_options_are_checked_in_its_rule_file(site: Site) -> None:
    site.system.write("work.py", WORK)
    site.system.write("count.yaml", RULES.format(up_to="many"))
    refused = site.oncue("rules", "test", "count.yaml", code=2)
    assert "count.yaml:3:" in refused
    assert "up_to is a whole number, not a text" in refused
