"""The screen of `oncue status`: reasons are grouped, and each has a next step."""

from __future__ import annotations

import click
import pytest

from oncue.cli.commands.status import Report, Tasks, lines
from oncue.protocol.api import DeadInfo, EndpointInfo, Health, RuleInfo, TaskCount, TaskInfo, TriggerInfo


def task(state: str, why: str, rule: str = "", short: str = "abc") -> TaskInfo:
    fields = {"function": "f" * 64, "name": "fit", "endpoint": "lab", "owner": "ann", "rule": rule}
    return TaskInfo(id="0" * 32, state=state, why=why, short=short, **fields)


def report(**fields: object) -> Report:
    none = TaskCount(count=0)
    tasks = Tasks(none, none, none, none, succeeded=none, failed=none, open=[], failures=[])
    health = Health(status="ok", version="1")
    base = {"health": health, "endpoints": [], "tasks": tasks, "triggers": [], "rules": [], "dead": []}
    return Report(url="http://x", server="1", subject="ann", **(base | fields))  # type: ignore[arg-type]


def text(found: Report) -> str:
    return click.unstyle("\n".join(lines(found)))


def test_reasons_that_differ_in_numbers_only_are_one_line() -> None:
    waits = [task("waiting", f"endpoint 'lab' has no free worker; {n:,} tasks wait here") for n in (3_000, 2, 1)]
    failures = [task("failed", f"ValueError: row {n}", "r", f"id{n}") for n in range(4)]
    four = TaskCount(count=4)
    tasks = Tasks(four, TaskCount(count=10_000, more=True), *[TaskCount(count=0)] * 3, four, waits, failures)
    said = text(report(tasks=tasks))
    assert "4 running, over 10,000 waiting" in said
    assert "3× endpoint 'lab' has no free worker" in said
    assert "4× failed: rule r, fit: ValueError: row 0" in said
    assert "oncue tasks show id0" in said
    assert "oncue tasks retry --state failed" in said


def test_what_does_not_run_has_a_next_step() -> None:
    away = EndpointInfo(id="e", name="lab", owner="ann", state="never", waiting=1)
    trigger = TriggerInfo(name="incoming", kind="file", label="l", state="failed", detail="no folder")
    rule = RuleInfo(
        name="r", label="l", version=1, enabled=True, on=None, runs=[], endpoint="lab", state="paused", why="too slow"
    )
    letter = DeadInfo(id=1, stage="args", reason="no field n", at_us=1)
    health = Health(status="degraded", version="1", checks={"log": "the disk is full", "view": "ok"})
    said = text(report(endpoints=[away], triggers=[trigger], rules=[rule], dead=[letter], health=health))
    assert "lab has never connected, 1 open task\n" in said
    assert "oncue endpoint start lab" in said
    assert "trigger incoming failed: no folder" in said
    assert "rule r is paused: too slow" in said
    assert "1× no field n" in said
    assert "oncue dead list" in said
    assert "log: the disk is full" in said


def test_hostile_texts_are_escaped() -> None:
    bad = task("failed", "\x1b[31m[/red]")
    zero = TaskCount(count=0)
    said = text(report(tasks=Tasks(zero, zero, zero, zero, zero, zero, [], [bad])))
    assert "\x1b" not in said
    assert "[/red]" in said


def test_blocks_of_an_endpoint_are_a_table_with_the_output_of_failed_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    from oncue.cli.endpoint.status import show_blocks

    show_blocks(
        [
            {
                "id": "a1",
                "job": "17",
                "state": "running",
                "nodes": 2,
                "workers": 8,
                "busy": 3,
                "since": "2026-11-30 21:37:15+01:00",
                "reason": "job 17 running",
            },
            {"id": "a2", "job": "18", "state": "pending", "reason": "job 18, PENDING (Resources)"},
            {
                "id": "b2",
                "job": "16",
                "state": "ended",
                "nodes": 2,
                "why": "it failed",
                "stderr": "no module\nof that \x1b",
            },
            {"id": "c3"},
        ]
    )

    out = capsys.readouterr().out
    assert [line.split()[:3] for line in out.splitlines() if line[:2] in ("a1", "a2", "b2")] == [
        ["a1", "17", "running"],
        ["a2", "18", "pending"],
        ["b2", "16", "ended"],
    ]
    assert "2026-11-30 21:37:15\n" in out, "since when, and no more words than needed"
    assert out.splitlines()[3].split("pending")[1].strip() == "PENDING (Resources)"
    assert "stderr of 16:\n  no module\n  of that \\x1b" in out
