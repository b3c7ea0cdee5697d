"""Summary of a report: sums, reasons and latencies."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from oncue.ids import event_digest
from oncue.protocol.api import ReportItem, ReportReason
from oncue.protocol.api.reports import MISSING, PASSED_OVER, REPORT_STATES

STAGES = ("trigger", "match", "wait", "run")
REASONS = 1_000  # different ones that are told apart
GROUPS = 1_000
EXAMPLES = 3
OTHERS = "(others)"


class ReasonCount(msgspec.Struct):
    """Events with the same reason."""

    state: str
    rule: str
    why: str
    count: int = 0
    examples: list[int] = msgspec.field(default_factory=list)  # offsets of events


class StageTimes(NamedTuple):
    """Times of a stage of the events that are done; `share` of the slowest 5 %."""

    stage: str
    p50_us: int
    p95_us: int
    share: float


class ReportSummary:
    """Sums over the items of a report. Feed it by `read`."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(REPORT_STATES, 0)
        self.groups: dict[str, dict[str, int]] = {}
        self._reasons: dict[tuple[str, str, str], ReasonCount] = {}
        self._times = {stage: array("q") for stage in STAGES}
        self._seen: set[bytes] = set()

    def read(self, items: Iterable[ReportItem], grouped: bool = False) -> Iterator[ReportItem]:
        """Count each item, and yield it.

        An event that arrived twice has one outcome: the second one is passed over.
        """
        for item in items:
            found = self._once(item)
            self.counts[found.state] += 1
            self._count_reason(found)
            if grouped:
                name = found.group if found.group in self.groups or len(self.groups) < GROUPS else OTHERS
                self.groups.setdefault(name, dict.fromkeys(REPORT_STATES, 0))[found.state] += 1
            if found.stages is not None:
                for stage in STAGES:
                    self._times[stage].append(getattr(found.stages, stage))
            yield found

    def _once(self, item: ReportItem) -> ReportItem:
        digest = event_digest(item.source, item.id)
        if digest not in self._seen:
            self._seen.add(digest)
            return item
        why = ReportReason(state=PASSED_OVER, why="the same event arrived before: same source and id", condition="id")
        return msgspec.structs.replace(item, state=PASSED_OVER, reasons=[why], stages=None)

    def _count_reason(self, item: ReportItem) -> None:
        for reason in item.reasons:
            if reason.state != item.state or not (reason.why or reason.condition):
                continue
            key = (item.state, reason.rule, reason.condition or reason.why)
            if key not in self._reasons and len(self._reasons) >= REASONS:
                key = (item.state, "", OTHERS)
            found = self._reasons.setdefault(key, ReasonCount(*key))
            found.count += 1
            if len(found.examples) < EXAMPLES:
                found.examples.append(item.offset)

    @property
    def arrived(self) -> int:
        return sum(self.counts.values())

    @property
    def accounted(self) -> bool:
        """True if nothing is missing."""
        return not self.counts[MISSING]

    def reasons(self) -> list[ReasonCount]:
        """Return the reasons, the most serious first, then the most frequent."""
        found = self._reasons.values()
        return sorted(found, key=lambda reason: (REPORT_STATES.index(reason.state), -reason.count, reason.rule))

    def latency(self) -> list[StageTimes]:
        """Return the times of each stage, and of all together as `total`."""
        totals = [sum(times) for times in zip(*self._times.values(), strict=True)]
        if not totals:
            return []
        p95 = percentile(totals, 95)
        slowest = [n for n, total in enumerate(totals) if total >= p95]
        whole = sum(totals[n] for n in slowest) or 1
        found = [
            StageTimes(s, percentile(t, 50), percentile(t, 95), sum(t[n] for n in slowest) / whole)
            for s, t in self._times.items()
        ]
        return [*found, StageTimes("total", percentile(totals, 50), p95, 1.0)]

    def as_dict(self) -> dict[str, Any]:
        """Return the summary as plain data."""
        return {
            "arrived": self.arrived,
            "accounted": self.accounted,
            "counts": {state.replace(" ", "_"): count for state, count in self.counts.items()},
            "reasons": [msgspec.to_builtins(reason) for reason in self.reasons()],
            "latency": [times._asdict() for times in self.latency()],
            "groups": self.groups,
        }


def percentile(values: Iterable[int], percent: int) -> int:
    """Return the smallest value that `percent` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)] if ordered else 0
