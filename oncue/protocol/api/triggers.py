"""Bodies of `/v1/triggers`."""

from __future__ import annotations

from oncue.protocol.api.base import Moment, Request, Response, Text, Time
from oncue.protocol.codec import build_decoders


class TriggerInfo(Response, frozen=True):
    """A trigger and its counters since the server started."""

    name: str
    kind: str
    label: str
    # running; starting; looking (initial scan); waiting (for its folder); failed;
    # elsewhere (runs on another server)
    state: str
    detail: str = ""
    looked: bool = True  # the initial scan, which separates existing items from new ones, is done
    existing: int = 0  # files older than the trigger: they fire only when they change
    emitted: int = 0
    skipped: int = 0
    last_us: int = 0
    last_skip: str = ""
    last_skip_us: int = 0
    server: str = ""  # URL of the server that runs it, if that is not the one that responds

    last = Moment("last_us")


class TriggerShown(TriggerInfo, frozen=True):
    """A trigger with its last decisions.

    They are in order of time, at most 100, and only of the time since the server started.
    """

    decisions: list[TriggerDecision] = []


class TriggerDecision(Response, frozen=True):
    """The trigger's decision on one item: fired or not, and why."""

    path: str  # relative to the watched folder (".": all of it); for a webhook, the event's id
    fired: bool
    why: str
    at_us: int

    at = Moment("at_us")


class TriggerFile(Response, frozen=True):
    """The explanation why a file fired, or did not."""

    path: str  # relative to the watched folder
    #: fired; fires (its event is being published); waits; old (it existed before the trigger);
    #: passed over; not meant (excluded by the options); missing; not seen (yet)
    state: str
    why: str
    at_us: int = 0  # time of that decision

    at = Moment("at_us")


class BackfillRequest(Request, frozen=True, omit_defaults=True):
    """POST /v1/triggers/{name}/backfill: old files that are to fire.

    All of them, or those that the glob selects and whose modification time is in the period.
    """

    glob: Text = ""  # relative to the watched folder; without a slash: of the name
    since_us: Time = 0
    until_us: Time = 0
    dry_run: bool = False  # count them only


class Backfilled(Response, frozen=True):
    """The files that a backfill lets fire, or would."""

    trigger: str
    dry_run: bool
    files: int
    bytes: int = 0  # sum of their sizes
    fired_before: int = 0  # selected files that have fired before: they do not fire again
    first: list[str] = []  # the first of them


build_decoders(globals())
