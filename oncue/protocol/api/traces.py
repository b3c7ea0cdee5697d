"""Bodies of `/v1/trace`."""

from __future__ import annotations

from typing import Any

from oncue.protocol.api.base import Moment, Response
from oncue.protocol.codec import build_decoders


class TracedTaskInfo(Response, frozen=True):
    """A task of a trace."""

    id: str
    after: str = ""  # the task whose outcome caused it; "": the event did
    state: str = ""
    rule: str = ""
    name: str = ""  # of the function
    endpoint: str = ""
    owner: str = ""
    attempt: int = 1
    accepted_us: int = 0
    started_us: int = 0
    ended_us: int = 0
    why: str = ""

    at = Moment("accepted_us")


class Trace(Response, frozen=True):
    """An event, the tasks that it caused, those that their outcomes caused, and so on."""

    event: dict[str, Any] | None = None  # CloudEvents JSON; null: a program called, or it is not kept
    source: str = ""  # of the event; "": there was none
    id: str = ""
    tasks: list[TracedTaskInfo] = []  # each behind the one before it
    more: bool = False  # there are more tasks


build_decoders(globals())
