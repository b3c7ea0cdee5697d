"""Reports as text, CSV and HTML."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from oncue.cli.output import number_of, safe, say, table, when
from oncue.cli.reports.summary import STAGES, ReportSummary
from oncue.protocol.api import ReportItem
from oncue.protocol.api.reports import DONE, PASSED_OVER, REPORT_STATES

COLUMNS = ("offset", "at", "source", "id", "type", "subject", "state", "rule", "why", "task", "group", "total_us")
LISTED = 1_000  # events of each state that a page has
ORDER = (DONE, "failed", "waiting", PASSED_OVER, "missing")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # with which a spreadsheet's formula begins
STYLE = (
    "body{font:14px system-ui,sans-serif;margin:2em;color:#222}table{border-collapse:collapse;margin:1em 0}"
    "td,th{border-bottom:1px solid #ddd;padding:4px 10px;text-align:left;vertical-align:top}"
    ".missing,.failed{color:#b00020}.n{text-align:right}"
)


def equation(summary: ReportSummary) -> str:
    """Return the sum in one line."""
    parts = " + ".join(f"{state} {summary.counts[state]:,}" for state in ORDER)
    return f"arrived {summary.arrived:,} = {parts}"


def show_summary(summary: ReportSummary) -> None:
    """Print sum, reasons, groups and latencies."""
    say(equation(summary))
    rows = [(r.state, f"{r.count:,}", r.rule, r.why, _offsets(r.examples)) for r in summary.reasons()]
    if rows:
        say()
        table(("STATE", "EVENTS", "RULE", "WHY", "OFFSETS"), rows, "")
    if summary.groups:
        say()
        heads = ("GROUP", *(state.upper() for state in ORDER))
        groups = sorted(summary.groups.items())
        table(heads, [(name or "-", *(f"{counts[s]:,}" for s in ORDER)) for name, counts in groups], "")
    latency = summary.latency()
    if latency:
        say()
        times = [(t.stage, duration(t.p50_us), duration(t.p95_us), f"{t.share:.0%}") for t in latency]
        table(("STAGE", "P50", "P95", "SHARE OF THE SLOWEST"), times, "")
    if not summary.accounted:
        say()
        say(f"{number_of(summary.counts['missing'], 'event')} unaccounted for: oncue report --list missing")


def show_events(items: Iterable[ReportItem]) -> None:
    """Print one line for each event."""
    rows = [(str(i.offset), when(i.at_us), i.state, i.subject or i.id, *_first(i)[:2]) for i in items]
    table(("OFFSET", "AT", "STATE", "EVENT", "RULE", "WHY"), rows, "there are none")


def csv_lines(items: Iterable[ReportItem]) -> Iterator[str]:
    """Yield the lines of a CSV file.

    Texts that a spreadsheet would run begin with a quote.
    """
    yield _csv_line(COLUMNS)
    for item in items:
        total = sum(getattr(item.stages, stage) for stage in STAGES) if item.stages else ""
        head = (item.offset, when(item.at_us), item.source, item.id, item.type, item.subject, item.state)
        yield _csv_line((*head, *_first(item), item.group, total))


def _csv_line(cells: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow([_cell(cell) for cell in cells])
    return text.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    shown = safe(value)
    return "'" + shown if shown.startswith(FORMULA) else shown


def html_page(title: str, summary: ReportSummary, events: dict[str, list[ReportItem]]) -> str:
    """Return a page that needs nothing else."""
    parts = [f"<h1>{escape(title)}</h1><p><b>{escape(equation(summary))}</b></p>"]
    reasons = [(r.state, f"{r.count:,}", r.rule, r.why, _offsets(r.examples)) for r in summary.reasons()]
    parts.append(_html_table("Reasons", ("state", "events", "rule", "why", "offsets"), reasons))
    times = [(t.stage, duration(t.p50_us), duration(t.p95_us), f"{t.share:.0%}") for t in summary.latency()]
    parts.append(_html_table("Latency", ("stage", "p50", "p95", "share of the slowest"), times))
    groups = [(name or "-", *(f"{c[s]:,}" for s in ORDER)) for name, c in sorted(summary.groups.items())]
    parts.append(_html_table("Groups", ("group", *ORDER), groups))
    for state in REPORT_STATES:
        rows = [(str(i.offset), when(i.at_us), i.subject or i.id, *_first(i)) for i in events.get(state, ())]
        more = summary.counts[state] - len(rows)
        heading = f"{state} ({summary.counts[state]:,})" + (f", {more:,} of them not listed" if more else "")
        parts.append(_html_table(heading, ("offset", "at", "event", "rule", "why", "task"), rows))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style><body>{''.join(parts)}</body></html>"
    )


def _html_table(heading: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(safe(c))}</td>" for c in row) + "</tr>" for row in rows)
    return f"<h2>{escape(heading)}</h2><table><tr>{cells}</tr>{lines}</table>"


def _first(item: ReportItem) -> tuple[str, str, str]:
    """Return rule, reason and task of the most serious reason."""
    if not item.reasons:
        return "", "", ""
    return item.reasons[0].rule, item.reasons[0].why, item.reasons[0].task


def _offsets(offsets: Sequence[int]) -> str:
    return ", ".join(map(str, offsets))


def duration(us: int) -> str:
    """Return a time for people."""
    for least, unit in ((3_600_000_000, "h"), (60_000_000, "min"), (1_000_000, "s"), (1_000, "ms")):
        if us >= least:
            return f"{us / least:.3g} {unit}"
    return f"{us} µs"
