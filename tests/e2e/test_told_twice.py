"""An event that is told twice runs its function once: in the same run of the server, and across a restart."""

from __future__ import annotations

import time

import pytest

from tests.e2e.running import PATIENCE_S, System

RULES = """\
rules:
  - name: note
    on: {type: twice}
    run: {function: note.py:note, args: {path: "${data.path}", text: "${id}"}}
"""
NOTE = """\
def note(path, text):
    with open(path, "a") as file:
        file.write(text + "\\n")
"""


def tell(system: System, event_id: str, extensions: dict[str, str | int | bool]) -> None:
    with system.client() as client:
        client.emit(
            type="twice",
            source="a/test",
            id=event_id,
            data={"path": str(system.folder / "noted")},
            extensions=extensions,
        )


@pytest.mark.parametrize("stored_time", [True, False])
def test_an_event_that_is_told_twice_runs_once(stopped: System, stored_time: bool) -> None:
    stopped.write("note.py", NOTE)
    rules = stopped.write("rules.yaml", RULES)
    stopped.up("--workers", "1")
    stopped.oncue("deploy", str(rules), "--yes")
    ext: dict[str, str | int | bool] = {"oncuetimems": str(time.time_ns() // 1_000_000)} if stored_time else {}
    tell(stopped, "a", ext)
    tell(stopped, "a", ext)
    tell(stopped, "b", ext)
    stopped.await_tasks(2, rule="note")
    stopped.down()
    stopped.up("--workers", "1")
    tell(stopped, "a", ext)
    tell(stopped, "c", ext)
    stopped.await_tasks(3, rule="note")
    with stopped.client() as client:  # behind the others, on the one worker
        assert client.submit(abs, -1).result(PATIENCE_S) == 1
    assert (stopped.folder / "noted").read_text().split() == ["a", "b", "c"]
