"""Bodies of `/v1/events` and `/v1/dead`."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from oncue.protocol.api.base import Moment, Request, Response
from oncue.protocol.codec import build_decoders


class EventInfo(Response, frozen=True):
    """An event, the rules that it fired, and their tasks."""

    offset: int
    event: dict[str, Any]  # CloudEvents JSON
    at_us: int
    fired: list[str] = []  # names of rules
    tasks: list[str] = []

    at = Moment("at_us")


class EventCount(Response, frozen=True):
    """GET /v1/events/count: `count` events, or `more` than that."""

    count: int
    more: bool = False


class Emitted(Response, frozen=True):
    """Events that are durable now."""

    count: int
    id: str = ""  # of the event, if one was sent
    position: str = ""


class DeadInfo(Response, frozen=True):
    """A dead letter: a record that could not be processed.

    It is `open` until a person retries or dismisses it.
    """

    id: int
    stage: str
    reason: str
    at_us: int
    remedy: str = ""
    rule: str = ""
    event: tuple[str, str] | None = None
    topic: str = ""
    partition: int = 0
    offset: int = 0
    owner: str = ""  # of the rule; "": visible to admins only
    state: str = "open"  # open, retried, dismissed
    settled_us: int = 0  # when it was retried or dismissed
    settled_by: str = ""
    settled_why: str = ""

    at = Moment("at_us")
    settled = Moment("settled_us")


class DismissRequest(Request, frozen=True):
    """POST /v1/dead/dismiss: dismiss these dead letters, or all open ones.

    If one of `letters` cannot be dismissed, none is.
    """

    letters: Annotated[list[Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]], msgspec.Meta(max_length=10_000)] = (
        msgspec.field(default_factory=list)
    )
    all: bool = False
    reason: str = ""


class Dismissed(Response, frozen=True):
    """The number of dead letters that were open and are dismissed now."""

    count: int
    position: str = ""


build_decoders(globals())
