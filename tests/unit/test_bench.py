"""The bench's own arithmetic: what is not measured is never met, and a probe that fails says so."""

from __future__ import annotations

import shlex
import sys

import pytest
from rich.console import Console

from bench import goals, probe, tables


def test_a_figure_is_met_by_its_direction_and_only_if_measured() -> None:
    results = {"system": {"throughput": {"burst_per_s": 50_000}, "latency": {"p50_ms": 1.6}, "start_s": 2.0}}
    found = {f.goal.path: f for f in goals.figures(results)}
    assert found["system.throughput.burst_per_s"].met
    assert not found["system.latency.p50_ms"].met
    assert found["system.start_s"].met
    assert found["agent.tasks_per_s"].value is None
    assert not found["agent.tasks_per_s"].met


def test_ratios_are_of_the_mean_of_both_runs() -> None:
    results = {"system": {"throughput": {"burst_per_s": 60}, "latency": {"p50_ms": 3.0}}}
    found = probe.ratios(results, {"median": 100, "p50": 1.0}, {"median": 140, "p50": 2.0})
    assert found == {"median": 0.5, "p50": 2.0}
    assert probe.ratios(results, None, {"error": "it did not run"}) == {}


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("print('noise'); print('{\"best\": 5}')", {"best": 5}),
        ("raise SystemExit('broken')", {"error": "exit code 1: broken"}),
        ("print('[1]')", {"error": "it printed no JSON object"}),
    ],
)
def test_a_probe(code: str, found: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(probe.VARIABLE, shlex.join([sys.executable, "-c", code]))
    assert probe.run() == found


def test_no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(probe.VARIABLE, raising=False)
    assert probe.run() is None


def test_a_report_of_parts_that_failed_is_shown() -> None:
    report = {
        "quick": True,
        "machine": {"cores": 2, "memory_gb": 24, "system": "x", "python": "3.11", "load_1min": 0.1},
        "load_1min_after": 0.2,
        "results": {"agent": {"error": "OSError: [/no markup]"}},
        "probe": {"before": {"best": 10}, "after": {"error": "gone"}, "ratios": {}},
        "peers": {"Dask": {"skipped": "not [/here]"}},
    }
    console = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115
    tables.show(report, console)
    console.file.close()
    text = console.export_text()
    assert "[/no markup]" in text
    assert "not [/here]" in text
    assert "not measured" in text
