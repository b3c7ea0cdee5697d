"""Bodies of `/v1/report`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from oncue.protocol.api.base import Moment, Name, PageLimit, Request, Response, Text, Time
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


class ReplayRequest(Request, frozen=True):
    """POST /v1/rules/{name}/replay: test a rule with stored events once more."""

    #: Of the replay. The same events, rule and name give the same tasks.
    name: Annotated[str, Meta(pattern="^[A-Za-z0-9][A-Za-z0-9_.:-]{0,99}$")]
    since_us: Time = 0
    until_us: Time = 0
    where: Text = ""  # CEL over the event
    state: Literal["", "failed", "done", "none"] = ""  # of the event's tasks by this rule; none: it has no task
    dry_run: bool = False  # only count
    priority: Literal["", "live", "normal", "low"] = ""  # of the tasks; "": that of the rule
    cursor: Name = ""
    limit: PageLimit = 200


class ReplayPage(Response, frozen=True):
    """Counts of a page of a replay."""

    events: int = 0  # that were looked at
    chosen: int = 0  # by where, state, and `on` and conditions of the rule
    tasks: int = 0  # that there are now; in a dry run 0
    letters: int = 0  # dead letters
    next: str | None = None


class SimulateRequest(Request, frozen=True):
    """POST /v1/deployments/{label}/simulate: a page of stored events."""

    text: str  # of the rule file
    since_us: Time = 0
    until_us: Time = 0
    cursor: Name = ""
    limit: PageLimit = 200


class SimulatedRule(Response, frozen=True):
    """Counts of one rule: events for which it fired, or which its operators got."""

    rule: str
    before: int = 0  # as it is in force
    after: int = 0
    differing: int = 0  # events


class SimulatedDifference(Response, frozen=True):
    """An event with which a rule would do something else."""

    offset: int
    id: str
    rule: str
    before: str  # fires, matched (its operators get it), no, failed; "-": its `on` is about others
    after: str
    why: str = ""  # it does not fire
    args_before: str = ""  # as JSON, shortened
    args_after: str = ""


class SimulationPage(Response, frozen=True):
    """Comparison for a page of events."""

    events: int = 0
    rules: list[SimulatedRule] = []
    differences: list[SimulatedDifference] = []  # the first ones
    left_out: list[str] = []  # rules on outcomes
    next: str | None = None


build_decoders(globals())
