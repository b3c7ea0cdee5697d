"""Base classes of the API's bodies, pages of lists, and error responses."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec

from oncue.protocol.codec import build_decoders
from oncue.protocol.records import NAME_CHARS
from oncue.text.html_table import record_table

Name = Annotated[str, msgspec.Meta(max_length=NAME_CHARS)]
Text = Annotated[str, msgspec.Meta(max_length=4_000)]
Time = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]  # unix µs; 0: no limit
PageLimit = Annotated[int, msgspec.Meta(ge=1, le=1_000)]


class Moment:
    """Time of UTC, from a field of a unix time in µs; None for 0: it has not happened.

    `accepted = Moment("accepted_us")` in a Response.
    """

    def __init__(self, field: str) -> None:
        self._field = field

    def __get__(self, instance: object, owner: type) -> datetime | None:
        us = 0 if instance is None else getattr(instance, self._field)
        return datetime.fromtimestamp(us / 1e6, UTC) if us else None


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """Base class of responses: a client ignores fields that it does not know."""

    def _repr_html_(self) -> str:
        """Return the fields as a table, for notebooks."""
        return record_table(self)


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base class of requests. An unknown field is an error: it may be misspelt."""


class Page(Response, frozen=True):
    """A page of a list.

    `next` is the cursor of the following page; null on the last one.
    """

    items: list[Any]
    next: str | None = None


class Problem(Response, frozen=True):
    """RFC 9457 problem response (application/problem+json)."""

    type: str  # "urn:oncue:error:<code>"
    title: str  # first line of the error's explanation
    status: int
    detail: str
    code: str
    remedy: str = ""
    details: dict[str, Any] = {}


build_decoders(globals())
