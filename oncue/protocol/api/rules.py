"""Bodies of `/v1/rules`."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from oncue.protocol.api.base import Moment, Request, Response, Text
from oncue.protocol.api.triggers import TriggerInfo
from oncue.protocol.codec import build_decoders


class DeployRequest(Request, frozen=True, omit_defaults=True):
    """POST /v1/rules: deploy rule files, all or none.

    `functions` maps each "file.py:name" that the files use to the content hash of a registered
    function. If a label was deployed from another place, the deploy is a conflict unless `replace`
    is set. `prune` removes in the same step what that label owns (deployments PRUNE/...) and the
    request does not have.
    """

    files: Annotated[list[RuleFile], msgspec.Meta(max_length=1_000)]
    functions: dict[str, str] = msgspec.field(default_factory=dict)
    dry_run: bool = False
    note: str = ""
    replace: bool = False
    prune: Text = ""


class RuleFile(Request, frozen=True):
    """A rule file and its place."""

    label: str
    text: str
    path: str = ""  # absolute; paths in the text are relative to its folder
    host: str = ""  # the machine of that path


class Deployed(Response, frozen=True):
    """The result of deploying one rule file, or of a dry run."""

    label: str
    version: int
    changed: bool
    added: list[str] = []
    changed_rules: list[str] = []
    removed: list[str] = []
    diff: str = ""
    functions: list[FunctionChange] = []  # functions whose content changes
    replaces: str = ""  # host:path of the deployed file, if this one is from another place
    triggers: list[TriggerInfo] = []  # after their initial scans: new items fire from now on
    waits: str = ""  # why its stateful rules do not run yet
    notes: list[str] = []  # of a dry run: what its triggers will do with files that exist
    warnings: list[RuleWarning] = []
    pruned: bool = False  # removed, since the request asked to prune


class RuleWarning(Response, frozen=True):
    """A part of a rule that is valid, and probably a mistake."""

    rule: str
    line: int
    column: int
    message: str
    remedy: str = ""


class FunctionChange(Response, frozen=True):
    """A function of a rule file before and after a deploy.

    `old` and `new` are content hashes. "" and 0: there was none, there is none any more, or it is
    not registered yet.
    """

    function: str  # as in the rule file: tomo.py:reconstruct
    old: str = ""
    new: str = ""
    old_version: int = 0
    new_version: int = 0


class RuleInfo(Response, frozen=True):
    """A deployed rule, its state and its counters."""

    name: str
    label: str
    version: int
    enabled: bool
    on: Any
    runs: list[str]
    endpoint: str
    state: str = "active"  # active, shadow, paused, disabled
    why: str = ""
    fired: int = 0  # tasks since the servers started; a repeated event adds none
    text: str = ""
    memory: str = ""  # "dedupe for 10m, batch of 100 events or 30s"; "": not a stateful rule
    suppressed: int = 0  # events that dedupe dropped since the servers started
    empty: int = 0  # firings that made no task, as the list of `for_each` was empty, since the servers started
    windows: int = 0  # open windows
    waiting: int = 0  # events in them
    closes_us: int = 0  # latest time at which the next window closes; 0: none closes by time
    unevaluated: int = 0  # events for which `when` could not be evaluated, since the servers started
    unevaluated_why: str = ""  # the reason for the last of them; "": none under this version of the rule
    unevaluated_source: str = ""  # of the last of them
    unevaluated_event: str = ""  # its id
    unevaluated_us: int = 0  # when it was tested
    shadow: int = 0  # firings that ran nothing, as the rule has `mode: shadow`, since the servers started
    # Use by attempts that have ended, within the limit's period; without a limit, within a week.
    attempts: int = 0
    node_hours: float = 0.0  # time of attempts, each times its share of a node
    worker_hours: float = 0.0  # time of attempts
    cpu_hours: float = 0.0  # as far as measured
    peak_bytes: int = 0  # memory of the largest task
    node_hours_limit: float = 0.0  # 0: none
    node_hours_period_s: int = 0
    waits: list[str] = []  # why firings wait for the rule's limits, by key; of one rule, on the server that runs it


class Explanation(Response, frozen=True):
    """The reason why a rule fires for an event, or does not.

    `steps` are the rule's conditions in order. The rule is evaluated as it is now. `fired` lists
    the tasks that it made when the event arrived.
    """

    rule: str
    event: str
    fires: bool
    why: str
    steps: list[ExplainStep] = []
    args: Any = None
    fired: list[Fired] = []  # tasks of this event; the rule may have been another version then


class Fired(Response, frozen=True):
    """A task that a rule made for an event."""

    task: str
    at_us: int
    version: int  # of the deployment

    at = Moment("at_us")


class ExplainStep(Response, frozen=True):
    """One condition, the value found in the event, and the value wanted."""

    condition: str
    holds: bool
    found: str
    wanted: str


build_decoders(globals())
