"""A trigger is a source of events. It gets an `emit` callable and nothing else of oncue, so that the same trigger runs
inside the server or, through the client, at a remote beamline.

    trigger ──emit([Event, ...])──► durable in oncue.events (emit returns then, or raises)

An emit that raised did not happen: the trigger tries again, with the same event ids, so that a doubt never doubles a task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import msgspec

from oncue.errors import Invalid
from oncue.protocol.records import Event

Emit = Callable[[Sequence[Event]], Awaitable[None]]
Secrets = Callable[[str], str]  # name -> value; raises NotFound


class StateChunk(msgspec.Struct, frozen=True):
    """A part of what a trigger has kept: (key, value), in the order in which it was; an empty value takes the key away."""

    entries: Sequence[tuple[bytes, bytes]]
    position: str  # all before it has been read
    from_start: bool  # whether reading began where it all begins


class ReplicatedState(Protocol):
    """What a trigger keeps here, it finds again on whichever server it runs next."""

    def load(self, position: str) -> AsyncIterator[StateChunk]:
        """All since that position (one that is not good any more, "": all), at least one. Raises LogError."""
        ...

    async def persist(self, entries: Sequence[tuple[bytes, bytes]]) -> None:
        """Durable when this returns. Raises LogError."""
        ...


class TriggerContext(msgspec.Struct, frozen=True):
    """What a trigger is given."""

    emit: Emit
    folder: Path  # its own, for ledgers; kept between starts
    secrets: Secrets
    deployed_us: int = 0  # when its deployment was recorded; 0: now
    state: ReplicatedState | None = None  # None: it runs nowhere else


class Status(msgspec.Struct, frozen=True, kw_only=True):
    #: starting; looking (through what was there before); running; waiting (for its folder to appear); failed
    state: str = "starting"
    detail: str = ""
    scanned: bool = True  # whether it has told what was there before from what comes
    existing: int = 0  # what was there before the trigger was, and does not fire for that
    emitted: int = 0
    skipped: int = 0
    last_us: int = 0
    last_skip: str = ""  # what was skipped last, and why
    last_skip_us: int = 0  # and when


class Decision(msgspec.Struct, frozen=True):
    """What became of one file, or of one request."""

    path: str  # relative to the watched folder, ".": of all; for a webhook: the event's id
    fired: bool
    why: str
    at_us: int


class ItemExplanation(msgspec.Struct, frozen=True):
    """Why one file fired, or did not."""

    path: str  # relative to the watched folder
    #: fired; fires (its event is on the way); waits; old (there before the trigger was); passed over; not meant (by the
    #: options); missing; not seen (yet)
    state: str
    why: str
    at_us: int = 0  # when that was found


class Trigger(ABC):
    """One configured source. `run` returns only when it is cancelled; what goes wrong is shown in `status` and tried
    again with backoff."""

    kind: ClassVar[str]
    #: The Struct (frozen, kw_only, forbid_unknown_fields) of this kind's keys in a rule file beside name and kind.
    options: ClassVar[type[msgspec.Struct]]

    def __init__(self, name: str, options: Any, context: TriggerContext) -> None:
        self.name, self.context = name, context

    @abstractmethod
    async def run(self) -> None: ...

    async def initial_scan(self) -> None:
        """Returns when the trigger has told what was there before from what comes, or cannot for now: `status` says. Who
        deploys is answered then. A source without a past has nothing to look at."""
        return

    def on_deployed(self) -> None:
        """Who deployed is being answered. What comes from now on is new, also where the first look has not got to yet."""
        return

    @abstractmethod
    def status(self) -> Status: ...

    def decisions(self) -> Sequence[Decision]:
        """What became of the last files, oldest first, and why."""
        return ()

    async def explain(self, path: str) -> ItemExplanation:
        """Why this file fired, or did not; absolute, or relative to the watched folder. Raises TriggerFailed."""
        raise Invalid(f"trigger {self.name} is of kind {self.kind}: it has no files", remedy="name one of kind file")


class HttpTrigger(Trigger):
    """A trigger that the API calls: POST /hooks/<name>."""

    @abstractmethod
    async def receive(self, headers: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Verifies, emits, and gives (status, headers, body). A 2xx only when the raw body is durable.
        `headers` have lower-case names. Raises Unauthorized, Invalid, TooLarge ... for the API to answer."""
