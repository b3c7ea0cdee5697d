"""Runs the triggers of the rule files that are in force, and nothing else: one harms no other.

A trigger is kept as long as its name, kind and options stay the same; a deploy that changes another one does not touch it.
What breaks is shown as failed with its reason and started again with backoff.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from oncue import resources as r
from oncue.errors import NotFound, OncueError, TriggerFailed
from oncue.triggers import kinds
from oncue.triggers.base import Emit, HttpTrigger, Status, Trigger, TriggerContext

log = logging.getLogger("oncue.triggers")
BACKOFF_S = (1.0, 2.0, 5.0, 15.0, 60.0)


class Wanted(msgspec.Struct, frozen=True):
    """A trigger as a rule file has it."""

    name: str
    kind: str
    options: Any
    label: str


class Running(msgspec.Struct):
    wanted: Wanted
    task: asyncio.Task[None] | None = None
    trigger: Trigger | None = None
    failed: str = ""


class TriggerHost:
    def __init__(self, emit: Emit, folder: Path) -> None:
        self._emit, self._folder = emit, folder
        self._running: dict[str, Running] = {}

    async def update(self, wanted: Mapping[str, Wanted]) -> None:
        """Stop what is not wanted any more, start what is new."""
        gone = [n for n, run in self._running.items() if wanted.get(n) != run.wanted]
        await self._stop([self._running.pop(name) for name in gone])
        for name, want in wanted.items():
            if name not in self._running:
                run = self._running[name] = Running(want)
                run.task = asyncio.create_task(self._keep_running(run), name=f"trigger {name}")

    async def _keep_running(self, run: Running) -> None:
        failures = 0
        while True:
            try:
                run.trigger = self._make(run.wanted)
                run.failed = ""
                await run.trigger.run()
                return
            except asyncio.CancelledError:
                raise
            except Exception as e:
                run.failed = str(e) or type(e).__name__
                known = isinstance(e, OncueError)
                log.error("trigger %s failed: %s", run.wanted.name, run.failed, exc_info=None if known else e)
            await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
            failures += 1

    def _make(self, want: Wanted) -> Trigger:
        folder = self._folder / re.sub(r"[^A-Za-z0-9._-]", "_", want.name)
        folder.mkdir(parents=True, exist_ok=True)
        context = TriggerContext(self._emit, folder, self._secret)
        return kinds()[want.kind](want.name, want.options, context)

    def _secret(self, name: str) -> str:
        """A secret that rule files name as ${secret:NAME}: a file in the data folder's `secrets`, or the environment."""
        path = self._folder.parent / "secrets" / name
        if re.fullmatch(r"[A-Za-z0-9._-]+", name) and path.is_file():
            return path.read_text().strip()
        value = os.environ.get("ONCUE_SECRET_" + name.upper().replace("-", "_").replace(".", "_"))
        if value is None:
            raise NotFound(
                f"there is no secret {name!r}",
                remedy=f"write it to {path} (mode 600), or set ONCUE_SECRET_{name.upper().replace('-', '_')} for the server",
            )
        return value

    async def receive(self, name: str, headers: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        run = self._running.get(name)
        if run is None or not issubclass(kinds()[run.wanted.kind], HttpTrigger):
            raise NotFound(f"there is no webhook {name!r}", remedy="deploy a rule file with a trigger of kind webhook")
        if not isinstance(run.trigger, HttpTrigger):
            raise TriggerFailed(
                f"webhook {name!r} does not run: {run.failed or 'it is starting'}",
                remedy="mend its options in the rule file, and deploy that" if run.failed else "try again in a moment",
            )
        return await run.trigger.receive(headers, body)

    def infos(self) -> list[r.TriggerInfo]:
        return [_info(run) for _, run in sorted(self._running.items())]

    async def close(self) -> None:
        runs = list(self._running.values())
        self._running.clear()
        await self._stop(runs)

    async def _stop(self, runs: list[Running]) -> None:
        tasks = [run.task for run in runs if run.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _info(run: Running) -> r.TriggerInfo:
    status = run.trigger.status() if run.trigger is not None else Status()
    if run.failed:
        status = msgspec.structs.replace(status, state="failed", detail=run.failed)
    return r.TriggerInfo(
        name=run.wanted.name,
        kind=run.wanted.kind,
        label=run.wanted.label,
        state=status.state,
        detail=status.detail,
        emitted=status.emitted,
        skipped=status.skipped,
        last_us=status.last_us,
        last_skip=status.last_skip,
    )
