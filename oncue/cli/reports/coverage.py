"""Coverage: rules that never fire, and events that no rule takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from oncue.cli.reports.summary import EXAMPLES, OTHERS
from oncue.protocol.api import ReportItem, RuleInfo
from oncue.protocol.api.reports import PASSED_OVER

KINDS = 1_000  # of events, that are told apart
CONDITIONS = 1_000  # of one rule


class RuleCoverage(msgspec.Struct):
    """Events that a rule took in a period.

    `why`: the condition that most others lacked.
    """

    rule: str
    state: str
    events: int = 0
    why: str = ""


class Untaken(msgspec.Struct):
    """Events of one type and source that no rule took."""

    type: str
    source: str
    events: int = 0
    of: int = 0  # events of this type and source
    why: str = ""  # the most frequent reason
    examples: list[int] = msgspec.field(default_factory=list)  # offsets


class Coverage:
    """Sums over the items of a report."""

    def __init__(self) -> None:
        self.events = 0
        self._taken: Counter[str] = Counter()
        self._lacking: dict[str, Counter[str]] = {}
        self._kinds: dict[tuple[str, str], Untaken] = {}
        self._whys: dict[tuple[str, str], Counter[str]] = {}

    def read(self, items: Iterable[ReportItem]) -> None:
        """Count each item."""
        for item in items:
            self.events += 1
            took = {reason.rule for reason in item.reasons if reason.state != PASSED_OVER and reason.rule}
            took.update(item.rules)
            self._taken.update(took)
            for reason in item.reasons:
                if reason.state == PASSED_OVER and reason.rule:
                    _add(self._lacking.setdefault(reason.rule, Counter()), reason.condition)
            self._count_kind(item, bool(took) or item.state != PASSED_OVER)

    def _count_kind(self, item: ReportItem, taken: bool) -> None:
        key = (item.type, item.source)
        if key not in self._kinds and len(self._kinds) >= KINDS:
            key = (OTHERS, "")
        found = self._kinds.setdefault(key, Untaken(*key))
        found.of += 1
        if taken:
            return
        found.events += 1
        if len(found.examples) < EXAMPLES:
            found.examples.append(item.offset)
        first = item.reasons[0] if item.reasons else None
        if first is not None:
            _add(self._whys.setdefault(key, Counter()), f"{first.rule}: {first.condition}" if first.rule else first.why)

    def rules(self, rules: Iterable[RuleInfo]) -> list[RuleCoverage]:
        """Return what each rule took, those that took nothing first."""
        found = [RuleCoverage(r.name, r.state, self._taken[r.name], self._why(r)) for r in rules]
        return sorted(found, key=lambda coverage: (coverage.events, coverage.rule))

    def _why(self, rule: RuleInfo) -> str:
        if self._taken[rule.name]:
            return ""
        lacking = self._lacking.get(rule.name)
        if rule.state != "active" or not lacking:
            return rule.why or "no event was about it"
        condition, count = lacking.most_common(1)[0]
        return f"{condition}: does not hold for {count:,}"

    def untaken(self) -> list[Untaken]:
        """Return the kinds of events of which some were not taken."""
        for key, whys in self._whys.items():
            self._kinds[key].why = whys.most_common(1)[0][0]
        found = [kind for kind in self._kinds.values() if kind.events]
        return sorted(found, key=lambda kind: (-kind.events, kind.type, kind.source))


def _add(counter: Counter[str], text: str) -> None:
    counter[text if text in counter or len(counter) < CONDITIONS else OTHERS] += 1
