"""`kind: file`: a watched folder. An event for each file that is complete.

    kernel ──► watcher (a thread: watch, ledger, walks) ──batches──► loop: emit ──► done ──► watcher
                                          └──► copy (ledger_replica.py), where another server may run it next

What fires: each state of each file once (see ledger.py), in batches, in the order in which the files became ready.
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

from oncue import ids
from oncue.errors import Invalid, OncueError, TooLarge, TriggerFailed
from oncue.protocol.records import Event
from oncue.triggers.activity import ActivityLog
from oncue.triggers.base import Decision, ItemExplanation, Status, Trigger, TriggerContext
from oncue.triggers.file.ledger_replica import LedgerReplica
from oncue.triggers.file.options import FileOptions, read_options
from oncue.triggers.file.watcher import EventBatch, FileWatcher

log = logging.getLogger(__name__)

ANSWER_S = 5.0  # how long a question about a file waits for the watcher
RETRY_S = (0.05, 0.2, 1.0, 2.0, 5.0, 10.0)


class FileTrigger(Trigger):
    """Raises Invalid when the options are not right. A folder that is missing is no error: it is shown in `status`, and
    scanned for again."""

    kind: ClassVar[str] = "file"
    options = FileOptions
    has_history: ClassVar[bool] = True
    keeps_state: ClassVar[bool] = True

    def __init__(self, name: str, options: FileOptions, context: TriggerContext) -> None:
        super().__init__(name, options, context)
        self.spec = read_options(name, options)
        self._activity = ActivityLog(scanned=False)
        self._scanned = asyncio.Event()  # the first one has ended, or cannot be taken for now
        self._deploy_answered = False
        self._watcher: FileWatcher | None = None

    @classmethod
    def resolve_paths(cls, options: Any, folder: Path) -> Any:
        if Path(options.path).expanduser().is_absolute():
            return options
        return msgspec.structs.replace(options, path=str(folder / options.path))

    def status(self) -> Status:
        status = self._activity.status()
        return status if self._scanned.is_set() else msgspec.structs.replace(status, scanned=False)

    def decisions(self) -> list[Decision]:
        """What became of the last 100 files, oldest first, and why."""
        return self._activity.decisions()

    async def explain(self, path: str) -> ItemExplanation:
        try:
            if self._watcher is not None:
                return await asyncio.wait_for(asyncio.wrap_future(self._watcher.explain(path)), ANSWER_S)
            why = "it is starting"
        except TimeoutError:
            why = self.status().detail or "its filesystem does not answer"
        except (OSError, sqlite3.Error) as e:
            why = str(e)
        raise TriggerFailed(f"trigger {self.name} cannot tell: {why}", remedy="`oncue triggers list` shows how it is")

    async def initial_scan(self) -> None:
        """Also returns when the trigger ends."""
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
        copy = LedgerReplica(self.context.state, folder) if self.context.state is not None else None
        async with contextlib.AsyncExitStack() as ending:
            ending.callback(self._scanned.set)
            if copy is not None:
                await copy.restore(ledger)
                ending.push_async_callback(copy.close, asyncio.create_task(copy.run()))
            watcher = self._watcher = FileWatcher(
                self.name, self.spec, ledger, self._activity, publish, on_scanned, self.context.deployed_us, copy
            )
            if self._deploy_answered:
                watcher.on_deployed()
            thread = threading.Thread(target=watcher.run, name=f"oncue-file-{self.name}", daemon=True)
            thread.start()
            waiting = asyncio.create_task(self._report_scanned(scanned, copy))
            try:
                while True:
                    batch = await batches.get()
                    watcher.on_durable(batch.number, await self._emit(batch.events))
            finally:
                waiting.cancel()
                watcher.stop()
                await asyncio.shield(asyncio.to_thread(thread.join, 30))

    async def _report_scanned(self, scanned: asyncio.Event, copy: LedgerReplica | None) -> None:
        """Which files were there before has to be kept wherever it is kept."""
        await scanned.wait()
        if copy is not None:
            await copy.flush()
        self._scanned.set()

    async def _emit(self, events: Sequence[Event]) -> frozenset[int]:
        """Returns when they are durable, with the indexes of those that nobody will ever take."""
        tries = 0
        while True:
            try:
                await self.context.emit(events)
            except (Invalid, TooLarge) as e:  # one of them is wrong: the others must not suffer
                if len(events) == 1:
                    self._activity.record_skipped(str(events[0].subject), f"its event was refused: {e.message}")
                    return frozenset((0,))
                half = len(events) // 2
                first = await self._emit(events[:half])
                return first | {half + i for i in await self._emit(events[half:])}
            except Exception as e:
                if not isinstance(e, OncueError | OSError) and not tries:
                    log.exception("trigger %s: emit failed", self.name)
                self._activity.trouble = f"{len(events)} events wait, they could not be stored: {e}"
                await asyncio.sleep(RETRY_S[min(tries, len(RETRY_S) - 1)])
                tries += 1
            else:
                self._activity.trouble = ""
                self._activity.emitted += len(events)
                self._activity.last_us = ids.now_us()
                return frozenset()
