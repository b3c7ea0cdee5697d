"""Sums of reports: each event counts once, in one state."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from oncue.cli.reports.coverage import Coverage
from oncue.cli.reports.formats import csv_lines, html_page
from oncue.cli.reports.summary import ReportSummary, percentile
from oncue.protocol.api import ReportItem, ReportReason, ReportStages
from oncue.protocol.api.reports import DONE, MISSING, PASSED_OVER, REPORT_STATES


def item(n: int, state: str, key: int, text: str = "why") -> ReportItem:
    reason = ReportReason(state=state, why=text, rule="r")
    stages = ReportStages(match=n, wait=1, run=2) if state == DONE else None
    return ReportItem(
        offset=n, source="/s", id=str(key), type="t", at_us=1, state=state, reasons=[reason], group=text, stages=stages
    )


@given(st.lists(st.tuples(st.sampled_from(REPORT_STATES), st.integers(0, 9), st.text(max_size=4)), max_size=40))
def test_the_sums_are_those_of_the_events(events: list[tuple[str, int, str]]) -> None:
    summary, covered = ReportSummary(), Coverage()
    items = [item(n, *event) for n, event in enumerate(events)]

    found = list(summary.read(items, grouped=True))
    covered.read(found)

    assert summary.arrived == len(events) == len(found)
    assert summary.counts == {state: sum(i.state == state for i in found) for state in REPORT_STATES}
    assert sum(sum(counts.values()) for counts in summary.groups.values()) == len(events)
    first = {event[1]: event[0] for event in reversed(events)}
    assert sum(i.state != PASSED_OVER for i in found) == sum(state != PASSED_OVER for state in first.values())
    assert summary.accounted == (MISSING not in first.values())
    assert covered.events == len(events)


@given(st.lists(st.integers(0, 1000), min_size=1), st.integers(1, 100))
def test_percentiles_are_values_that_few_exceed(values: list[int], percent: int) -> None:
    found = percentile(values, percent)

    assert found in values
    assert sum(v <= found for v in values) * 100 >= percent * len(values)


def test_texts_of_outsiders_run_neither_in_a_spreadsheet_nor_in_a_browser() -> None:
    hostile = '=cmd|"/c calc"!A1<script>alert(1)</script>\x1b[31m'
    items = [item(1, "failed", 1, hostile)]
    summary = ReportSummary()
    list(summary.read(items))

    (_, line) = csv_lines(items)
    page = html_page("report", summary, {"failed": items})

    assert "'=cmd" in line
    assert "\x1b" not in line + page
    assert "<script>" not in page
