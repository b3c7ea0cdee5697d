"""The view: this server's answers, derived from the log.

    log ──batches──► apply ──writer thread──► view.db ◄──reader threads── task, tasks, open_tasks, events ...
                       └──► Applied: what closed, what is due, what could not be read

Delete the file, apply the log again: the same answers, back to the log's horizon. All methods are called from one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from oncue.lifecycle import State, TaskState
from oncue.log import Partition, RecordBatch
from oncue.protocol.records import Call, Deployment, EndpointRecord, FunctionRecord, RuleSwitch, TokenRecord, Usage
from oncue.view import lists, lookups, queries, retention, snapshots
from oncue.view.lists import TaskFilter
from oncue.view.lookups import ClaimRow, DeadRow, EventRow, SkippedRow
from oncue.view.projector import Applied, Projector, Told
from oncue.view.queries import OpenRow, TaskQueries
from oncue.view.readers import Readers
from oncue.view.schema import open_writer
from oncue.view.tasks import Closing
from oncue.view.writer import Writer


class View:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = open_writer(path)
        self._projector = Projector(self._db)
        self._positions: dict[Partition, int] = dict(self._projector.positions)
        self._replayed: Applied | None = self._projector.replay_skipped()
        self._writer = Writer(path)
        self._readers = Readers(path)
        self._questions = TaskQueries()
        self._waiters: list[tuple[Mapping[Partition, int], asyncio.Future[None]]] = []
        self._wanted = asyncio.Event()  # somebody waits

    @classmethod
    def open(cls, path: Path) -> View:
        """Makes the file and its folder where they are missing. A file of another schema, or a damaged one, is moved aside
        (`.aside`) and `positions` is empty: read the log from its beginning. Raises ViewError."""
        return cls(path)

    async def close(self) -> None:
        """After what was handed over already."""
        await self._writer.close()
        await self._readers.close()
        self._db.close()
        for _, waiter in self._waiters:
            waiter.cancel()

    # ------------------------------------------------------------ the log

    def positions(self) -> dict[Partition, int]:
        """The next offset of each partition: for log.read(start=...)."""
        return dict(self._positions)

    async def apply(self, batches: Sequence[RecordBatch], told: Told = frozenset()) -> Applied:
        """Apply a group in one transaction, in the writer's thread. `told`: records (topic, partition, offset) whose
        closings need not be in the answer. Raises ViewError; then nothing of the group is done."""

        def job() -> tuple[Applied, dict[Partition, int]]:
            applied = self._projector.apply(batches, told)
            return applied, dict(self._projector.positions)

        applied, positions = await self._writer.do(job)
        self._reached(positions)
        if self._replayed is not None:
            replayed, self._replayed = self._replayed, None
            applied.closed[:0], applied.dead[:0] = replayed.closed, replayed.dead
        return applied

    async def skip_to(self, positions: Mapping[Partition, int]) -> None:
        """The log begins at these offsets (log.begin_offsets): what is below is gone, so nobody should wait for it. Says
        nothing of partitions where the view is further."""

        def job() -> dict[Partition, int]:
            self._projector.skip_to(positions)
            return dict(self._projector.positions)

        self._reached(await self._writer.do(job))

    def _reached(self, positions: dict[Partition, int]) -> None:
        self._positions = positions
        self._wake()

    async def wait_for(self, positions: Mapping[Partition, int], timeout_s: float) -> bool:
        """Whether the view has applied all records below these offsets, by then."""
        if self._has(positions):
            return True
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (positions, waiter)
        self._waiters.append(entry)
        self._wanted.set()
        try:
            await asyncio.wait_for(waiter, timeout_s)
            return True
        except TimeoutError:
            return self._has(positions)
        finally:
            if entry in self._waiters:
                self._waiters.remove(entry)
            if not self._waiters:
                self._wanted.clear()

    async def wanted_within(self, timeout_s: float) -> bool:
        """Wait until somebody waits for records that are not applied yet, at most for so long; whether somebody does."""
        if not self._wanted.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._wanted.wait()
        return self._wanted.is_set()

    def _has(self, positions: Mapping[Partition, int]) -> bool:
        have = self._positions
        return all(have.get(where, 0) >= offset for where, offset in positions.items())

    def _wake(self) -> None:
        if not self._waiters:
            return
        for positions, waiter in self._waiters:
            if not waiter.done() and self._has(positions):
                waiter.set_result(None)

    # ------------------------------------------------------------ tasks

    async def task(self, task_id: bytes) -> TaskState | None:
        """With all its attempts."""
        return await self._readers.ask(self._questions.task, task_id)

    async def tasks_of(self, ids: Sequence[bytes]) -> dict[bytes, TaskState]:
        """Those of the tasks that are known, with all their attempts."""
        return await self._readers.ask(self._questions.tasks, ids)

    async def states(self, ids: Sequence[bytes]) -> dict[bytes, tuple[State, str]]:
        """State and endpoint id of those of the tasks that are known."""
        return await self._readers.ask(self._questions.states, ids)

    async def accepted(self, ids: Sequence[bytes]) -> dict[bytes, int]:
        """When (unix µs) those of the tasks that are known were accepted first."""
        return await self._readers.ask(self._questions.accepted, ids)

    async def outcomes(self, ids: Sequence[bytes]) -> list[Closing]:
        """Those of the tasks that are closed."""
        return await self._readers.ask(self._questions.outcomes, ids)

    async def tasks(self, filters: TaskFilter) -> tuple[list[TaskState], str | None]:
        """A page, newest first, and the cursor of the next (None at the end). Raises Invalid."""
        return await self._readers.ask(lists.page, filters, self._questions.calls)

    async def open_tasks(self, endpoint: str, after_seq: int, limit: int) -> list[OpenRow]:
        """Open tasks of an endpoint (id) with seq > after_seq, in order of seq, whatever their attempt."""
        return await self._readers.ask(self._questions.open_tasks, endpoint, after_seq, limit)

    async def open_page(self, endpoint: str, topic: str, after_seq: int, limit: int) -> tuple[list[OpenRow], int]:
        """As `open_tasks`; and the offset in the topic, which its tasks are in, up to which the view had all then."""
        return await self._readers.ask(self._questions.open_page, endpoint, topic, after_seq, limit)

    async def expired(self, now_us: int, limit: int) -> list[OpenRow]:
        """Open tasks past their expiry whose attempt is not known to run."""
        return await self._readers.ask(self._questions.expired, now_us, limit)

    async def cancels(self, limit: int) -> list[tuple[bytes, str]]:
        """(task id, endpoint id) of open tasks that somebody wants to end, by the time of the wish."""
        return await self._readers.ask(queries.cancels, limit)

    async def open_counts(self) -> dict[str, int]:
        """Open tasks an endpoint id."""
        return await self._readers.ask(queries.open_counts)

    async def oldest_open_seq(self, endpoint: str) -> int | None:
        """`seq >> 16` is the offset below which the endpoint's topic of tasks may be truncated."""
        return await self._readers.ask(queries.oldest_open_seq, endpoint)

    async def fired(self, source: str, event_id: str) -> list[tuple[Call, bytes]]:
        """(call, task id) of what this event made run."""
        return await self._readers.ask(self._questions.fired, source, event_id)

    async def output(self, task_id: bytes) -> bytes:
        """What an open task has printed so far; a closed one has it in its attempts."""
        return await self._readers.ask(lookups.output, task_id)

    # ------------------------------------------------------------ the registry

    async def functions(
        self, cursor: str = "", limit: int = 50, owner: str = ""
    ) -> tuple[list[FunctionRecord], str | None]:
        """All versions, newest first, without bodies; and the next cursor."""
        return await self._readers.ask(lookups.functions, cursor, limit, owner)

    async def function(self, name: str, owner: str = "") -> FunctionRecord | None:
        """By content hash, name (newest version) or name@version; an owner's names are only that owner's."""
        return await self._readers.ask(lookups.function, name, owner)

    async def endpoints(self) -> list[EndpointRecord]:
        """All, also revoked ones."""
        return await self._readers.ask(lookups.endpoints)

    async def endpoint(self, name: str) -> EndpointRecord | None:
        """By id or name."""
        return await self._readers.ask(lookups.endpoint, name)

    async def endpoint_places(self, name: str) -> list[tuple[int, EndpointRecord]]:
        """(offset, record) of the endpoints of this name, in the registry's order."""
        return await self._readers.ask(lookups.endpoint_places, name)

    async def deployment_places(self, label: str) -> list[tuple[int, Deployment]]:
        """(offset, record) of all versions, in the registry's order."""
        return await self._readers.ask(lookups.deployment_places, label)

    async def deployments(self) -> list[Deployment]:
        """What is in force: the newest of each label, unless it was removed."""
        return await self._readers.ask(lookups.deployments)

    async def deployment_history(self, label: str) -> list[Deployment]:
        """Newest first."""
        return await self._readers.ask(lookups.deployment_history, label)

    async def switches(self) -> list[RuleSwitch]:
        """The newest of each rule."""
        return await self._readers.ask(lookups.switches)

    async def tokens(self) -> list[TokenRecord]:
        """All, also revoked and expired ones."""
        return await self._readers.ask(lookups.tokens)

    async def token_by_hash(self, hash_hex: str) -> TokenRecord | None:
        return await self._readers.ask(lookups.token_by_hash, hash_hex)

    async def usage(self) -> dict[str, Usage]:
        """The newest report of each endpoint id."""
        return await self._readers.ask(lookups.usage)

    async def claims(self) -> list[ClaimRow]:
        """The newest claim of each partition of oncue.control."""
        return await self._readers.ask(lookups.claims)

    # ------------------------------------------------------------ events and dead letters

    async def events(
        self, type: str = "", source: str = "", cursor: str = "", limit: int = 50
    ) -> tuple[list[EventRow], str | None]:
        """Newest first, and the next cursor."""
        return await self._readers.ask(lookups.events, type, source, cursor, limit)

    async def event(self, offset: int) -> EventRow | None:
        return await self._readers.ask(lookups.event, offset)

    async def dead(
        self, cursor: str = "", limit: int = 50, owner: str = "", settled: bool = False
    ) -> tuple[list[DeadRow], str | None]:
        """Open letters (and settled ones, too), newest first, and the next cursor; an owner's, or all."""
        return await self._readers.ask(lookups.dead, cursor, limit, owner, settled)

    async def open_dead(self) -> int:
        """How many letters are open."""
        return await self._readers.ask(lookups.open_dead)

    async def dead_letter(self, number: int) -> DeadRow | None:
        return await self._readers.ask(lookups.dead_letter, number)

    async def skipped(self) -> list[SkippedRow]:
        """Records of kinds that only a newer version knows; that one projects them when it opens this view."""
        return await self._readers.ask(lookups.skipped)

    # ------------------------------------------------------------ upkeep

    async def forget(self, before_ms: int, budget_s: float = 1.0) -> int:
        """Forget closed tasks, events, dead letters and output older than this, in bites between groups of batches, for
        about so long; call it again when it took that long. Returns how many rows went."""
        gone, started = 0, time.monotonic()
        at: int | None = 0
        while at is not None and time.monotonic() - started < budget_s:
            at, count = await self._writer.do(partial(retention.bite, self._db, at, before_ms))
            gone += count
        await self._writer.do(partial(retention.finished_output, self._db))
        while time.monotonic() - started < budget_s:
            count = await self._writer.do(partial(retention.bite_others, self._db, before_ms))
            gone += count
            if not count:
                break
        await self._writer.do(self._projector.forget_calls)
        return gone

    async def snapshot(self, path: Path) -> None:
        """A copy with its positions, while the view goes on. Raises Invalid when the file exists, ViewError."""
        await asyncio.to_thread(snapshots.write, self.path, path)

    @classmethod
    def restore(cls, path: Path, snapshot: Path) -> View:
        """Open the view from a snapshot; the old file is moved aside. Raises Invalid when it is none, ViewError."""
        snapshots.restore(path, snapshot)
        return cls.open(path)
