"""Interface of the triggers, the sources of events.

A trigger gets a TriggerContext and nothing else of oncue, so that the same class can run in a
server or, through the client, at a remote beamline.

    source ──items──► Trigger.run ──emit([Event, ...])──► oncue.events
                          └── then moves its position: a cursor, a ledger, an ack to the source

Rules for every kind:

- The position moves only after `emit` has returned, because the events are durable from then on. An
  `emit` that raises has stored nothing: send the same events again. The event id of an item is the
  same each time, so that a repeated event makes no second task.
- The position is durable: in `context.folder`, and in `context.state` where the log is shared, so
  that another server resumes from it. `cursor.py` keeps a small position in both. A source that
  remembers its readers (a Kafka consumer group, an MQTT session) needs neither.
- `run` ends only by cancellation: by a deploy that changes the options, or a pause. It is resumed
  by a new object with the same context.
- `status` says whether the source answers. `explain` and `decisions` say what became of an item.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import msgspec

from oncue.errors import Forbidden, Invalid
from oncue.protocol.api import Backfilled, BackfillRequest
from oncue.protocol.records import Event

#: Returns when the events are durable, else raises.
Emit = Callable[[Sequence[Event]], Awaitable[None]]
Secrets = Callable[[str], str]  # name -> value; raises NotFound


class StateChunk(msgspec.Struct, frozen=True):
    """Part of a trigger's replicated state.

    Entries are (key, value), in order; an empty value deletes the key.
    """

    entries: Sequence[tuple[bytes, bytes]]
    position: str  # entries before it have been read
    from_start: bool  # reading began at the first entry


class ReplicatedState(Protocol):
    """State of one trigger in the log.

    The server that runs the trigger next reads it.
    """

    def load(self, position: str) -> AsyncIterator[StateChunk]:
        """Read the entries since `position`, in one or more chunks. Raises LogError.

        A position that is "" or not valid any more reads all entries.
        """
        ...

    async def persist(self, entries: Sequence[tuple[bytes, bytes]]) -> None:
        """Append these entries; they are durable when this returns. Raises LogError."""
        ...


class Rights(msgspec.Struct, frozen=True):
    """Folders, secrets and variables that a trigger may use.

    A rule file that an admin deployed has no `owner` here, and no restriction.
    """

    owner: str = ""  # whose secrets it may use; "": the server's too
    folders: tuple[str, ...] = ()  # it may watch these, and what is below

    @property
    def restricted(self) -> bool:
        return bool(self.owner)

    def check_folder(self, folder: Path) -> None:
        """Raise Forbidden if the folder is outside. Symbolic links are followed before."""
        if not self.restricted:
            return
        real = Path(os.path.realpath(folder))
        if any(real.is_relative_to(os.path.realpath(root)) for root in self.folders):
            return
        raise Forbidden(
            f"{folder} is not a folder that an admin has allowed for triggers",
            remedy=f"choose one below {', '.join(self.folders)}, or ask an admin"
            if self.folders
            else "an admin allows folders with the setting trigger_roots, or deploys the rule file",
        )


class TriggerContext(msgspec.Struct, frozen=True):
    """The services that a trigger may use."""

    emit: Emit
    folder: Path  # of this trigger alone; kept between starts, on this server
    secrets: Secrets
    deployed_us: int = 0  # when its deployment was recorded, in unix µs; 0: now
    state: ReplicatedState | None = None  # None: no other server runs this trigger
    rights: Rights = Rights()


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """State and counters of a trigger, as `oncue triggers list` shows them."""

    #: starting; looking (initial scan); running; waiting (its source does not exist yet); failed
    state: str = "starting"
    detail: str = ""
    scanned: bool = True  # the initial scan has ended
    existing: int = 0  # items that existed before the trigger, and fire only when they change
    emitted: int = 0
    skipped: int = 0
    last_us: int = 0
    last_skip: str = ""  # the item skipped last, and why
    last_skip_us: int = 0


class Decision(msgspec.Struct, frozen=True):
    """Decision about one item: it fired, waits or was skipped, and why."""

    item: str  # name of the item in its source; ".": all items
    fired: bool
    why: str
    at_us: int


class ItemExplanation(msgspec.Struct, frozen=True):
    """Answer to `explain`: the state of one item and the reason."""

    item: str
    #: fired; fires (its event is being stored); waits; old (existed before the trigger);
    #: passed over; not meant (excluded by the options); missing; not seen (yet)
    state: str
    why: str
    at_us: int = 0  # when the item got into that state


class Trigger(ABC):
    """One configured source of events.

    `__init__` raises Invalid for wrong options. A source that does not answer is no error: `run`
    retries with backoff, and `status` says so.
    """

    kind: ClassVar[str]
    #: The keys of this kind in a rule file, beside name and kind: a Struct that is frozen,
    #: kw_only and forbid_unknown_fields. Its class variable RELATIVE, if there is one, names
    #: event fields that never begin with a slash; FIELDS all fields of their data, with their
    #: types, VALUES the values of fields that have few, NAMES those without a slash, and TYPE
    #: their type: a deploy warns of rules that look for others.
    options: ClassVar[type[msgspec.Struct]]
    #: Every server runs the trigger. False: only the server that owns the trigger's name.
    runs_everywhere: ClassVar[bool] = False
    #: Items may exist before the trigger: a deploy waits for `initial_scan`.
    has_history: ClassVar[bool] = False
    #: The trigger uses `context.state`.
    keeps_state: ClassVar[bool] = False

    def __init__(self, name: str, options: Any, context: TriggerContext) -> None:
        self.name, self.context = name, context

    @classmethod
    def resolve_paths(cls, options: Any, folder: Path) -> Any:
        """Return the options with absolute paths.

        Relative ones are relative to `folder`, which holds the rule file.
        """
        return options

    @classmethod
    def check_rights(cls, options: Any, rights: Rights) -> None:
        """Raise Forbidden if options with absolute paths want more than `rights`."""
        return

    @abstractmethod
    async def run(self) -> None:
        """Read the source and emit events, until cancelled."""

    async def initial_scan(self) -> None:
        """Wait for the initial scan, which separates existing items from new ones.

        Also returns when the scan is blocked; `status` says why. A deploy waits for this.
        """
        return

    def on_deployed(self) -> None:
        """Note that the deploy is about to be answered.

        Items that arrive from now on are new, even where the initial scan has not been.
        """
        return

    @abstractmethod
    def status(self) -> Status:
        """Return the state and the counters. Never waits."""

    def decisions(self) -> Sequence[Decision]:
        """Return the latest decisions, oldest first."""
        return ()

    async def explain(self, item: str) -> ItemExplanation:
        """Explain why this item fired or did not.

        Raises TriggerFailed; Invalid when the kind cannot.
        """
        raise Invalid(
            f"trigger {self.name} is of kind {self.kind}, which cannot explain a single item",
            remedy=f"`oncue triggers show {self.name}` lists its latest decisions",
        )

    async def backfill(self, request: BackfillRequest) -> Backfilled:
        """Let items fire that existed before the trigger.

        Raises TriggerFailed; Invalid when the kind cannot.
        """
        raise Invalid(
            f"trigger {self.name} is of kind {self.kind}: nothing existed before it that could fire",
            remedy="name a trigger of kind file: oncue triggers list",
        )

    @classmethod
    async def preview(cls, name: str, options: Any, running: Trigger | None, seconds: float) -> str:
        """Return what a deploy of these options does with existing items.

        "": nothing. `running`: the trigger of this name that runs here. Waits at most `seconds`.
        """
        return ""


HookAnswer = tuple[int, dict[str, str], bytes]  # status, headers, body


class HttpTrigger(Trigger):
    """A trigger that the API calls: POST /hooks/<name>, on any server."""

    runs_everywhere: ClassVar[bool] = True

    @abstractmethod
    async def receive(self, headers: Mapping[str, str], body: bytes) -> HookAnswer:
        """Verify a request, emit its events and return the answer.

        A 2xx is returned only when the events are durable. `headers` have lower-case names. Raises
        Unauthorized, Invalid, TooLarge ..., which the API answers with.
        """

    def handshake(self, headers: Mapping[str, str]) -> HookAnswer:
        """Answer OPTIONS, by which a sender asks whether to send. Raises Forbidden."""
        return 200, {"allow": "OPTIONS, POST"}, b""
