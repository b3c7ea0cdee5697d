"""RulesThen: the rule files that were in force when an event arrived."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from oncue.protocol.records import Deployment, RuleSwitch
from oncue.quantities import duration_text

CHANGING_US = 60_000_000  # an event may have waited so long, and met the next version
DEPLOYING_US = 1_000_000  # clocks of servers may differ by this; a batch of events begins with the newest deploy


class RulesThen:
    """Deployments of a period, by time."""

    def __init__(self, deployments: Sequence[Deployment], switches: Iterable[RuleSwitch]) -> None:
        """`deployments`: oldest first."""
        self._deployments = deployments
        self._times = [d.at_us for d in deployments]
        self._switches = {s.rule: s for s in switches}

    def number(self, at_us: int) -> int:
        """Return a number that changes with each deploy."""
        return bisect_right(self._times, at_us)

    def in_force(self, number: int) -> list[Deployment]:
        """Return the newest version of each label, without removed ones."""
        newest = {d.label: d for d in self._deployments[:number]}
        return [d for d in newest.values() if not d.removed]

    def excuse(self, rule: str, label: str, at_us: int) -> str:
        """Return why a rule may not have been tested at this time; "": it was."""
        changed = [t for d, t in zip(self._deployments, self._times, strict=True) if d.label == label]
        began = max((t for t in changed if t <= at_us), default=at_us)
        if began > at_us - DEPLOYING_US:
            return f"its file was deployed {duration_text((at_us - began) // 1000)} before"
        following = min((t for t in changed if t > at_us), default=0)
        if following and following < at_us + CHANGING_US:
            return f"its file was deployed anew {duration_text((following - at_us) // 1000)} later"
        switch = self._switches.get(rule)
        if switch is None:
            return ""
        why = f": {switch.why}" if switch.why else ""
        if not switch.enabled and at_us > switch.at_us - DEPLOYING_US:
            return f"the rule was {'paused' if switch.pauses else 'disabled'} by {switch.by or 'hand'}{why}"
        return "the rule was enabled again later" if switch.enabled and at_us < switch.at_us else ""
