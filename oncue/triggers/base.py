"""A trigger is a source of events. It gets an `emit` callable and nothing else of oncue, so that the same trigger runs
inside the server or, through the client, at a remote beamline.

    trigger ──emit([Event, ...])──► durable in oncue.events (emit returns then, or raises)

An emit that raised did not happen: the trigger tries again, with the same event ids, so that a doubt never doubles a task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from oncue.messages import Event

Emit = Callable[[Sequence[Event]], Awaitable[None]]
Secrets = Callable[[str], str]  # name -> value; raises NotFound


class TriggerContext(msgspec.Struct, frozen=True):
    """What a trigger is given."""

    emit: Emit
    folder: Path  # its own, for ledgers; kept between starts
    secrets: Secrets


class Status(msgspec.Struct, frozen=True, kw_only=True):
    state: str = "starting"  # starting, running, failed
    detail: str = ""
    emitted: int = 0
    skipped: int = 0
    last_us: int = 0
    last_skip: str = ""  # what was skipped last, and why


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

    @abstractmethod
    def status(self) -> Status: ...


class HttpTrigger(Trigger):
    """A trigger that the API calls: POST /hooks/<name>."""

    @abstractmethod
    async def receive(self, headers: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Verifies, emits, and gives (status, headers, body). A 2xx only when the raw body is durable.
        `headers` have lower-case names. Raises Unauthorized, Invalid, TooLarge ... for the API to answer."""
