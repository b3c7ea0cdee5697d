"""FileTrigger, `kind: file`: an event for each complete file in a folder.

    kernel ──► FileWatcher (thread) ──batches──► loop: emit ──► on_durable ──► FileWatcher
                   └──► LedgerReplica, where servers share the log

Each state of each file fires once (ledger.py), in the order in which the files became ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from oncue.clocks.process import now_us
from oncue.errors import Forbidden, Invalid, OncueError, TooLarge, TriggerFailed
from oncue.protocol.api import Backfilled, BackfillRequest
from oncue.protocol.records import Event
from oncue.triggers.activity import ActivityLog
from oncue.triggers.base import Decision, ItemExplanation, Rights, Status, Trigger, TriggerContext
from oncue.triggers.file.existing_files import count_existing
from oncue.triggers.file.ledger_replica import LedgerReplica
from oncue.triggers.file.options import FileOptions, read_options
from oncue.triggers.file.stability import FileKey
from oncue.triggers.file.watcher import EventBatch, FileWatcher

log = logging.getLogger(__name__)

BACKFILL_S = 50.0  # longest wait for a backfill; clients wait 60 s for an answer
EXPLAIN_S = 5.0  # longest wait for the watcher in `explain`
RETRY_S = (0.05, 0.2, 1.0, 2.0, 5.0, 10.0)


class FileTrigger(Trigger):
    """Watches one folder.

    A missing folder is no error: `status` shows it, and it is checked again.
    """

    kind: ClassVar[str] = "file"
    options = FileOptions
    has_history: ClassVar[bool] = True
    keeps_state: ClassVar[bool] = True

    def __init__(self, name: str, options: FileOptions, context: TriggerContext) -> None:
        super().__init__(name, options, context)
        self.spec = read_options(name, options)
        self._options = options
        self._activity = ActivityLog(scanned=False)
        self._scanned = asyncio.Event()  # the initial scan has ended or is blocked
        self._deploy_answered = False
        self._watcher: FileWatcher | None = None

    @classmethod
    def resolve_paths(cls, options: Any, folder: Path) -> Any:
        if Path(options.path).expanduser().is_absolute():
            return options
        return msgspec.structs.replace(options, path=str(folder / options.path))

    @classmethod
    def check_rights(cls, options: Any, rights: Rights) -> None:
        rights.check_folder(Path(options.path).expanduser().absolute())
        if rights.restricted and options.symlinks != "ignore":
            raise Forbidden(
                "`symlinks: files` may lead out of the folders that an admin has allowed",
                remedy="leave it out, or ask an admin to deploy the rule file",
            )

    def status(self) -> Status:
        status = self._activity.status()
        return status if self._scanned.is_set() else msgspec.structs.replace(status, scanned=False)

    def decisions(self) -> list[Decision]:
        return self._activity.decisions()

    async def explain(self, path: str) -> ItemExplanation:
        try:
            if self._watcher is not None:
                return await asyncio.wait_for(asyncio.wrap_future(self._watcher.explain(path)), EXPLAIN_S)
            why = "it is starting"
        except TimeoutError:
            why = self.status().detail or "its filesystem does not answer"
        except (OSError, ValueError, sqlite3.Error) as e:
            why = str(e)
        raise TriggerFailed(
            f"trigger {self.name} cannot explain a file: {why}", remedy="`oncue triggers list` shows its state"
        )

    async def backfill(self, request: BackfillRequest) -> Backfilled:
        if self._watcher is None:
            raise TriggerFailed(f"trigger {self.name} is starting", remedy="try again in a moment")
        try:
            async with asyncio.timeout(BACKFILL_S):
                started = await asyncio.wrap_future(self._watcher.backfill(request))
                return await asyncio.wrap_future(started)
        except TimeoutError:
            why = f"it takes longer than {BACKFILL_S:g} s"
        except (OSError, sqlite3.Error) as e:
            why = str(e)
        raise TriggerFailed(
            f"the backfill of trigger {self.name} ended early: {why}",
            remedy="do it again: files that have fired meanwhile do not fire again",
        )

    @classmethod
    async def preview(cls, name: str, options: Any, running: Trigger | None, seconds: float) -> str:
        if not options.existing:
            return ""
        spec = read_options(name, options)
        watcher = running._watcher if isinstance(running, FileTrigger) and running.spec.root == spec.root else None

        def handled(keys: list[FileKey]) -> set[FileKey]:
            return watcher.handled_of(keys).result(seconds) if watcher is not None else set()

        try:
            count, complete = await asyncio.to_thread(count_existing, spec, handled, seconds)
        except (OSError, TimeoutError):
            return ""
        if not count:
            return ""
        return f"{'' if complete else 'at least '}{count:,} files that exist will fire (existing: true)"

    async def initial_scan(self) -> None:
        await self._scanned.wait()

    def on_deployed(self) -> None:
        self._deploy_answered = True
        if self._watcher is not None:
            self._watcher.on_deployed()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        batches: asyncio.Queue[EventBatch] = asyncio.Queue()

        def publish(batch: EventBatch) -> None:
            loop.call_soon_threadsafe(batches.put_nowait, batch)

        def on_scanned() -> None:
            loop.call_soon_threadsafe(scanned.set)

        scanned = asyncio.Event()
        folder = hashlib.blake2b(os.fsencode(self.spec.root), digest_size=8).hexdigest()
        ledger = self.context.folder / f"files-{folder}.db"
        replica = LedgerReplica(self.context.state, folder) if self.context.state is not None else None
        async with contextlib.AsyncExitStack() as ending:
            ending.callback(self._scanned.set)
            if replica is not None:
                await replica.restore(ledger)
                ending.push_async_callback(replica.close, asyncio.create_task(replica.run()))
            watcher = self._watcher = FileWatcher(
                self.name,
                self.spec,
                ledger,
                self._activity,
                publish,
                on_scanned,
                self.context.deployed_us,
                replica,
                check=lambda: self.check_rights(self._options, self.context.rights),
            )
            if self._deploy_answered:
                watcher.on_deployed()
            thread = threading.Thread(target=watcher.run, name=f"oncue-file-{self.name}", daemon=True)
            thread.start()
            waiting = asyncio.create_task(self._report_scanned(scanned, replica))
            try:
                while True:
                    batch = await batches.get()
                    watcher.on_durable(batch.number, await self._emit(batch.events))
            finally:
                waiting.cancel()
                self._scanned.set()  # a deploy that waits for it is answered before the thread ends
                watcher.stop()
                await asyncio.shield(asyncio.to_thread(thread.join, 30))

    async def _report_scanned(self, scanned: asyncio.Event, replica: LedgerReplica | None) -> None:
        """Set `_scanned` when the record of existing files is durable."""
        await scanned.wait()
        if replica is not None:
            await replica.flush()
        self._scanned.set()

    async def _emit(self, events: Sequence[Event]) -> frozenset[int]:
        """Emit until the events are durable; return the indexes of refused ones."""
        tries = 0
        while True:
            try:
                await self.context.emit(events)
            except (Invalid, TooLarge) as e:  # one of them is wrong: find it, and emit the others
                if len(events) == 1:
                    self._activity.record_skipped(str(events[0].subject), f"its event was refused: {e.message}")
                    return frozenset((0,))
                half = len(events) // 2
                first = await self._emit(events[:half])
                return first | {half + i for i in await self._emit(events[half:])}
            except Exception as e:
                if not isinstance(e, OncueError | OSError) and not tries:
                    log.exception("trigger %s: emit failed", self.name)
                self._activity.trouble = f"{len(events)} events wait: they could not be stored: {e}"
                await asyncio.sleep(RETRY_S[min(tries, len(RETRY_S) - 1)])
                tries += 1
            else:
                self._activity.trouble = ""
                self._activity.emitted += len(events)
                self._activity.last_us = now_us()
                return frozenset()
