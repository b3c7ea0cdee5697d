"""TriggerSupervisor: runs the triggers of the rule files in force.

Each is isolated from the others.

A trigger runs on while its name, kind and options stay the same: a deploy that changes another one
does not touch it. A trigger that raises is shown as failed, with the reason, and restarted with
backoff.

    deploy: update ──► initial_scan (of its triggers, with a timeout) ──► on_deployed ──► answer
    start:  update ──► on_deployed
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from oncue.dispatcher.services.trigger_rights import SecretStore
from oncue.errors import NotFound, OncueError, TriggerFailed
from oncue.protocol import api as r
from oncue.triggers.base import Emit, HttpTrigger, ReplicatedState, Rights, Status, Trigger, TriggerContext
from oncue.triggers.catalog import trigger_class

log = logging.getLogger("oncue.triggers")
BACKOFF_S = (1.0, 2.0, 5.0, 15.0, 60.0)


class DesiredTrigger(msgspec.Struct, frozen=True):
    """A trigger that the rule files in force ask for."""

    name: str
    kind: str
    options: Any
    label: str
    deployed_us: int = 0  # when the deployment in force was recorded
    owner: str = ""  # of the deployment
    rights: Rights = Rights()

    def is_same(self, other: DesiredTrigger | None) -> bool:
        """Return True if `other` needs no restart of a trigger that runs as this."""
        if other is None or self is other:
            return other is not None
        mine = self.name, self.kind, self.label, self.owner, self.rights, self.options
        return mine == (other.name, other.kind, other.label, other.owner, other.rights, other.options)


class SupervisedTrigger(msgspec.Struct):
    """A trigger that runs here, and its task."""

    wanted: DesiredTrigger
    task: asyncio.Task[None] | None = None
    trigger: Trigger | None = None
    failed: str = ""
    deploy_answered: bool = False  # its deploy has been answered
    after: list[asyncio.Task[None]] = []  # ending tasks of its name, which hold its ledger
    # Set once the trigger is created, failed or stopped.
    started: asyncio.Event = msgspec.field(default_factory=asyncio.Event)

    async def initial_scan(self) -> None:
        await self.started.wait()
        if self.trigger is not None and not self.failed:
            await self.trigger.initial_scan()


class TriggerSupervisor:
    """Starts, restarts and stops triggers. Used in the event loop only."""

    def __init__(
        self, emit: Emit, folder: Path, state: Callable[[str], ReplicatedState | None] = lambda name: None
    ) -> None:
        """Prepare; `update` starts triggers.

        `state`: name of a trigger -> its replicated state; None where no other server runs it.
        """
        self._emit, self._folder, self._state = emit, folder, state
        self._secrets = SecretStore(folder.parent / "secrets")
        self._running: dict[str, SupervisedTrigger] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._starting = True
        self._elsewhere: dict[str, tuple[DesiredTrigger, str]] = {}

    def update(
        self, wanted: Mapping[str, DesiredTrigger], elsewhere: Mapping[str, tuple[DesiredTrigger, str]] | None = None
    ) -> None:
        """Stop triggers that are not wanted any more, and start new ones.

        Waits for neither: a file server that does not answer delays its own trigger only.
        `elsewhere`: triggers of other servers, and the label of the server.
        """
        self._elsewhere = dict(elsewhere or {})
        for name in [n for n, run in self._running.items() if not run.wanted.is_same(wanted.get(n))]:
            self._end(self._running.pop(name))
        for name, want in wanted.items():
            if name not in self._running:
                title = f"trigger {name}"
                after = [task for task in self._ending if task.get_name() == title]
                run = self._running[name] = SupervisedTrigger(want, deploy_answered=self._starting, after=after)
                run.task = asyncio.create_task(self._supervise(run), name=title)

    def running(self, names: Iterable[str]) -> set[str]:
        """Return the names of those that run here."""
        return {n for n in names if n in self._running}

    def owner(self, name: str) -> str:
        """Return the owner of a trigger that runs here; "" for others."""
        return self._running[name].wanted.owner if name in self._running else ""

    async def initial_scan(self, names: Iterable[str], seconds: float) -> None:
        """Wait for the initial scans of these triggers, at most `seconds`.

        A blocked scan is not waited for.
        """
        scans = [asyncio.create_task(self._running[n].initial_scan()) for n in names if n in self._running]
        if scans:
            try:
                await asyncio.wait(scans, timeout=seconds)
            finally:
                for scan in scans:
                    scan.cancel()

    def on_deployed(self, names: Iterable[str] | None = None) -> None:
        """Note that the deploys of these triggers are about to be answered.

        None: all triggers. A server calls it so at its start: an earlier process answered their
        deploys.
        """
        self._starting = False
        for run in [self._running[n] for n in (self._running if names is None else names) if n in self._running]:
            run.deploy_answered = True
            if run.trigger is not None:
                run.trigger.on_deployed()

    async def _supervise(self, run: SupervisedTrigger) -> None:
        failures = 0
        if run.after:
            await asyncio.wait(run.after)
        while True:
            try:
                run.trigger = self._make(run.wanted)
                if run.deploy_answered:
                    run.trigger.on_deployed()
                run.failed = ""
                run.started.set()
                await run.trigger.run()
                return
            except asyncio.CancelledError:
                raise
            except Exception as e:
                run.failed = str(e) or type(e).__name__
                known = isinstance(e, OncueError)
                log.error("trigger %s failed: %s", run.wanted.name, run.failed, exc_info=None if known else e)
                run.started.set()
            await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
            failures += 1

    def _make(self, want: DesiredTrigger) -> Trigger:
        folder = self._folder / re.sub(r"[^A-Za-z0-9._-]", "_", want.name)
        folder.mkdir(parents=True, exist_ok=True)
        cls = trigger_class(want.kind)
        state = self._state(want.name) if cls.keeps_state else None
        secret = partial(self._secrets.find, owner=want.owner, rights=want.rights)
        context = TriggerContext(self._emit, folder, secret, want.deployed_us, state, want.rights)
        return cls(want.name, want.options, context)

    def receives(self, name: str) -> bool:
        """Return True if the trigger is here and has been started."""
        run = self._running.get(name)
        return run is not None and run.started.is_set()

    def webhook(self, name: str) -> HttpTrigger:
        """Return a trigger that takes requests. Raises NotFound, TriggerFailed."""
        run = self._running.get(name)
        if run is None or not issubclass(trigger_class(run.wanted.kind), HttpTrigger):
            raise NotFound(f"there is no webhook {name!r}", remedy="deploy a rule file with a trigger of kind webhook")
        if not isinstance(run.trigger, HttpTrigger):
            raise TriggerFailed(
                f"webhook {name!r} does not run: {run.failed or 'it is starting'}",
                remedy="mend its options in the rule file, and deploy that" if run.failed else "try again in a moment",
            )
        return run.trigger

    def infos(self, names: Iterable[str] | None = None) -> list[r.TriggerInfo]:
        """Return the states of these triggers (None: all), ordered by name."""
        return self.describer(names)()

    def describer(self, names: Iterable[str] | None = None) -> Callable[[], list[r.TriggerInfo]]:
        """Return a function that does the work of `infos`, in any thread."""
        known = sorted({*self._running, *self._elsewhere} if names is None else set(names))
        found = [self._elsewhere.get(name) or self._running.get(name) for name in known]
        return lambda: [_info(f) if isinstance(f, SupervisedTrigger) else _elsewhere(*f) for f in found if f]

    def __len__(self) -> int:
        return len(self._running) + len(self._elsewhere)

    def decisions(self, name: str) -> list[r.TriggerDecision]:
        """Return the latest decisions of a trigger that runs here."""
        run = self._running.get(name)
        trigger = run.trigger if run is not None else None
        found = trigger.decisions() if trigger is not None else ()
        return [r.TriggerDecision(path=d.item, fired=d.fired, why=d.why, at_us=d.at_us) for d in found]

    async def explain(self, name: str, item: str) -> r.TriggerFile:
        """Explain why an item fired or did not.

        Raises TriggerFailed; Invalid when its kind cannot.
        """
        found = await self._trigger(name).explain(item)
        return r.TriggerFile(path=found.item, state=found.state, why=found.why, at_us=found.at_us)

    def _trigger(self, name: str) -> Trigger:
        """Return a trigger that runs here. Raises TriggerFailed."""
        if name in self._elsewhere:
            place = self._elsewhere[name][1]
            raise TriggerFailed(
                f"trigger {name} runs on the server {place}", remedy="ask that server: --url, ONCUE_URL"
            )
        run = self._running[name]
        if run.trigger is None:
            why = run.failed or "it is starting"
            raise TriggerFailed(f"trigger {name} does not run: {why}", remedy="`oncue triggers list` shows its state")
        return run.trigger

    async def backfill(self, name: str, request: r.BackfillRequest) -> r.Backfilled:
        """Let old items fire. Raises TriggerFailed; Invalid when its kind cannot."""
        return await self._trigger(name).backfill(request)

    async def preview(self, name: str, kind: str, options: Any, seconds: float) -> str:
        """Return what a deploy of these options will do with items that exist."""
        run = self._running.get(name)
        return await trigger_class(kind).preview(name, options, run.trigger if run is not None else None, seconds)

    async def close(self) -> None:
        for run in self._running.values():
            self._end(run)
        self._running.clear()
        await asyncio.gather(*self._ending, return_exceptions=True)

    def _end(self, run: SupervisedTrigger) -> None:
        """Cancel a trigger.

        It emits no more events, but its thread may take a moment to end.
        """
        run.started.set()
        if run.task is not None:
            run.task.cancel()
            self._ending.add(run.task)
            run.task.add_done_callback(self._ending.discard)


def _elsewhere(wanted: DesiredTrigger, place: str) -> r.TriggerInfo:
    detail = f"it runs on the server {place}" if place else "no server runs it yet"
    return r.TriggerInfo(
        name=wanted.name, kind=wanted.kind, label=wanted.label, state="elsewhere", detail=detail, looked=False
    )


def _info(run: SupervisedTrigger) -> r.TriggerInfo:
    history = trigger_class(run.wanted.kind).has_history
    status = run.trigger.status() if run.trigger is not None else Status(scanned=not history)
    if run.failed:
        status = msgspec.structs.replace(status, state="failed", detail=run.failed)
    return r.TriggerInfo(
        name=run.wanted.name,
        kind=run.wanted.kind,
        label=run.wanted.label,
        state=status.state,
        detail=status.detail,
        looked=status.scanned,
        existing=status.existing,
        emitted=status.emitted,
        skipped=status.skipped,
        last_us=status.last_us,
        last_skip=status.last_skip,
        last_skip_us=status.last_skip_us,
    )
