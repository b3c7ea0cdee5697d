"""Correction of times that an agent reports by a wrong clock."""

from __future__ import annotations

import msgspec

from oncue.clocks.peer import TOLERANCE_US, PeerClock
from oncue.protocol.records import Ended
from oncue.protocol.reports import Output, Report, Started


class AgentClock(PeerClock):
    """Clock of an agent.

    When a retry is due follows from the end of the attempt before it. So an end must be a time of
    the server's clock before it is stored.
    """

    def correct(self, ends: list[Ended], body: bytes, now_us: int) -> tuple[list[Ended], bytes]:
        """Return the ends with times of the server's clock, and their encoding.

        The encoding is `body`, or b"" if the ends differ from it.
        """
        if not self.ahead_us and (not ends or ends[-1].ended_us <= now_us + TOLERANCE_US):
            return ends, body
        corrected = [
            msgspec.structs.replace(
                e, started_us=self._corrected(e.started_us, now_us), ended_us=self._corrected(e.ended_us, now_us)
            )
            for e in ends
        ]
        return corrected, b""

    def correct_report(self, report: Report, now_us: int) -> Report:
        """Return the report with times of the server's clock."""
        if not self.ahead_us or isinstance(report, Output):
            return report
        if isinstance(report, Started):
            tasks = tuple((i, attempt, self._corrected(at, now_us)) for i, attempt, at in report.tasks)
            return msgspec.structs.replace(report, tasks=tasks)
        blocks = tuple(
            msgspec.structs.replace(
                b, since_us=self._corrected(b.since_us, now_us), ends_us=b.ends_us and max(1, b.ends_us - self.ahead_us)
            )
            for b in report.blocks
        )
        return msgspec.structs.replace(report, at_us=self._corrected(report.at_us, now_us), blocks=blocks)

    def _corrected(self, at_us: int, now_us: int) -> int:
        return at_us and max(1, min(at_us - self.ahead_us, now_us))  # 0: it did not start
