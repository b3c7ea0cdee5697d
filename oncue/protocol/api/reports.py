"""Bodies of `/v1/report`."""

from __future__ import annotations

from oncue.protocol.api.base import Moment, Response
from oncue.protocol.codec import build_decoders

#: What became of an event, the most serious first: that of its parts is that of the event.
MISSING, WAITING, FAILED, DONE, PASSED_OVER = "missing", "waiting", "failed", "done", "passed over"
REPORT_STATES = (MISSING, WAITING, FAILED, DONE, PASSED_OVER)


class ReportReason(Response, frozen=True):
    """Effect of one rule on an event, or the reason why it had none."""

    state: str
    why: str = ""
    rule: str = ""
    condition: str = ""  # of the rule, that did not hold
    task: str = ""
    letter: int = -1  # number of the dead letter


class ReportStages(Response, frozen=True):
    """Durations of the parts of a chain that is done, in µs."""

    trigger: int = 0  # from what happened (a file was closed) to the event
    match: int = 0  # from event or outcome to task
    wait: int = 0  # from task to its last attempt's start
    run: int = 0


class ReportItem(Response, frozen=True):
    """An event of a report."""

    offset: int
    source: str
    id: str
    type: str
    at_us: int
    subject: str = ""
    state: str = PASSED_OVER
    reasons: list[ReportReason] = []
    rules: list[str] = []  # that made tasks of it
    tasks: int = 0
    group: str = ""
    stages: ReportStages | None = None

    at = Moment("at_us")


build_decoders(globals())
