"""Rules whose tasks do not start for now."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from oncue.protocol.records import Call


class PausedRules(msgspec.Struct, frozen=True):
    """Reasons by (rule, owner).

    `others`: why tasks of no other rule start either; "": they do.
    """

    reasons: Mapping[tuple[str, str], str] = {}
    others: str = ""

    def why(self, call: Call) -> str:
        """Return why tasks of this call do not start; "" if they do."""
        return (self.reasons.get((call.rule, call.owner)) or self.others) if call.rule else ""

    def frees(self, before: PausedRules) -> bool:
        """Return True if tasks may start that did not before."""
        return bool(before.others and not self.others) or not before.reasons.keys() <= self.reasons.keys()


NONE_PAUSED = PausedRules()
