"""Adds a kind of trigger in this file and runs it: rule file, server, endpoint, outcome.

The kind is a class of some 30 lines and one entry in the catalogue. Nothing else in oncue knows it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from oncue import ids
from oncue.protocol.records import Event
from oncue.triggers.activity import ActivityLog
from oncue.triggers.base import Decision, ItemExplanation, Status, Trigger, TriggerContext
from oncue.triggers.cursor import Cursor
from tests.e2e.running import PATIENCE_S, System


class CounterOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    up_to: int


class CounterTrigger(Trigger):
    """Emits an event for each number up to `up_to`. A restart goes on behind the last one stored."""

    kind: ClassVar[str] = "counter"
    options = CounterOptions
    keeps_state: ClassVar[bool] = True

    def __init__(self, name: str, options: CounterOptions, context: TriggerContext) -> None:
        super().__init__(name, options, context)
        self._up_to, self._count = options.up_to, 0
        self._cursor, self._activity = Cursor(context), ActivityLog()

    async def run(self) -> None:
        self._count = int(await self._cursor.load() or 0)
        self._activity.state = "running"
        while self._count < self._up_to:
            await self.context.emit([self._event(self._count + 1)])
            self._count += 1
            await self._cursor.store(str(self._count))
            self._activity.emitted += 1
            self._activity.record_fired(str(self._count), "counted", ids.now_us())
        await asyncio.Event().wait()

    def _event(self, number: int) -> Event:
        mark: dict[str, str | int | bool] = {"oncuetrigger": self.name}
        source = f"counter:///{self.name}"
        return Event(id=str(number), source=source, type="test.counted", data={"number": number}, extensions=mark)

    def status(self) -> Status:
        return self._activity.status()

    def decisions(self) -> list[Decision]:
        return self._activity.decisions()

    async def explain(self, item: str) -> ItemExplanation:
        if int(item) <= self._count:
            return ItemExplanation(item, "fired", "it was counted")
        return ItemExplanation(item, "not seen", f"the count is {self._count}")


#: `python -m oncue` with the kind in the catalogue.
ONCUE = f"""
import runpy, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from oncue.triggers.catalog import KINDS
KINDS["counter"] = "{__name__}:CounterTrigger"
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
    """A system whose commands and server know the kind."""

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
