"""Materialized view of the log: the database that answers a server's queries.

    log ──batches──► apply ──writer thread──► view.db ◄──reader threads── task, tasks, events ...
                       └──► Applied: closed tasks, new dead letters

The view can be rebuilt from the log at any time, as far back as the log reaches. Call all methods
on one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from oncue.log import Partition, RecordBatch
from oncue.protocol.records import Call, Deployment, EndpointRecord, FunctionRecord, RuleSwitch, TokenRecord
from oncue.protocol.reports import Usage
from oncue.task_lifecycle import State, TaskState
from oncue.view import (
    agent_queries,
    event_lists,
    last_records,
    lists,
    lookups,
    queries,
    retention,
    short_ids,
    snapshots,
    use_rows,
)
from oncue.view.applied_positions import AppliedPositions
from oncue.view.chains import event_accounts
from oncue.view.chains.causes import Cause, Key
from oncue.view.chains.event_accounts import EventAccount
from oncue.view.chains.traces import TracedTask
from oncue.view.event_lists import EventFilter, EventRow
from oncue.view.lists import TaskFilter
from oncue.view.lookups import ClaimRow, DeadRow, Newer, SkippedRow
from oncue.view.projector import Applied, Projector, RecordKeys
from oncue.view.queries import OpenPage, OpenRow, TaskQueries, TaskRun
from oncue.view.readers import ReaderPool
from oncue.view.schema import EVENT_KEYS, open_writer
from oncue.view.tasks import ClosedTask
from oncue.view.writer import ViewWriter


class View:
    """View of one log, in one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = open_writer(path)
        self._projector = Projector(self._db)
        self._applied = AppliedPositions(self._projector.positions)
        self._replayed: Applied | None = self._projector.replay_skipped()
        self._writer = ViewWriter(path)
        self._readers = ReaderPool(path)
        self._queries = TaskQueries()
        self._has_event_keys = False  # see schema.EVENT_KEYS

    @classmethod
    def open(cls, path: Path) -> View:
        """Open the view; create the file and its folder if missing. Raises ViewError.

        A file that is damaged or of another schema is moved aside: `positions` is empty then.
        """
        return cls(path)

    async def close(self) -> None:
        """Finish enqueued jobs, then close."""
        await self._writer.close()
        await self._readers.close()
        self._db.close()
        self._applied.close()

    # ------------------------------------------------------------ the log

    def positions(self) -> dict[Partition, int]:
        """Return the next offset of each partition, for log.read(start=...)."""
        return dict(self._applied.positions)

    async def last_records(self) -> dict[Partition, tuple[int, int]]:
        """Return (offset, checksum) of the last record of partitions, as far as known."""
        return await self._readers.run(last_records.stored)

    async def apply(self, batches: Sequence[RecordBatch], reported: RecordKeys = frozenset()) -> Applied:
        """Apply a group of batches in one transaction, in the writer thread.

        The result omits tasks closed by `reported` records. Raises ViewError; then nothing of the
        group is applied.
        """

        def job() -> tuple[Applied, dict[Partition, int]]:
            applied = self._projector.apply(batches, reported)
            return applied, dict(self._projector.positions)

        applied, positions = await self._writer.run(job)
        self._applied.set(positions)
        if self._replayed is not None:
            replayed, self._replayed = self._replayed, None
            applied.closed[:0], applied.dead[:0] = replayed.closed, replayed.dead
        return applied

    async def skip_to(self, positions: Mapping[Partition, int]) -> None:
        """Advance positions to where the log now begins (log.begin_offsets).

        Truncated records cannot be waited for. Partitions whose position is later stay unchanged.
        """

        def job() -> dict[Partition, int]:
            self._projector.skip_to(positions)
            return dict(self._projector.positions)

        self._applied.set(await self._writer.run(job))

    async def wait_for(self, positions: Mapping[Partition, int], timeout_s: float) -> bool:
        """Wait until all records below these offsets are applied; False on timeout."""
        return await self._applied.wait_for(positions, timeout_s)

    async def wait_for_waiters(self, timeout_s: float) -> bool:
        """Wait for a pending call of `wait_for`; False on timeout."""
        return await self._applied.wait_for_waiters(timeout_s)

    # ------------------------------------------------------------ tasks

    async def task(self, task_id: bytes) -> TaskState | None:
        """Return a task with all its attempts."""
        return await self._readers.run(self._queries.task, task_id)

    async def tasks_of(self, ids: Sequence[bytes], *, brief: bool = False) -> dict[bytes, TaskState]:
        """Return the known ones of these tasks, with all their attempts.

        `brief`: without arguments, values and outputs, which may be 256 KiB each.
        """
        return await self._readers.run(self._queries.tasks, ids, brief)

    async def with_causes(self, ids: Sequence[bytes]) -> dict[bytes, tuple[TaskState, Cause]]:
        """Return the known ones of these tasks, each with what began its chain."""
        if not self._has_event_keys:
            await self._writer.run(lambda: self._db.execute(EVENT_KEYS))
            self._has_event_keys = True
        return await self._readers.run(self._queries.with_causes, ids)

    async def arguments(self, ids: Sequence[bytes], most_bytes: int) -> list[bytes | None]:
        """Return the arguments of the first ones of these tasks, None for an unknown one.

        It is one at least, and no more after `most_bytes`.
        """
        return await self._readers.run(queries.arguments, ids, most_bytes)

    async def states(self, ids: Sequence[bytes]) -> dict[bytes, tuple[State, str]]:
        """Return state and endpoint id of the known ones of these tasks."""
        return await self._readers.run(self._queries.states, ids)

    async def calls_of(self, ids: Sequence[bytes]) -> dict[bytes, Call]:
        """Return the calls of the known ones of these tasks."""
        return await self._readers.run(self._queries.calls_of, ids)

    async def function_for(self, sha256: str, endpoint: str, owner: str) -> tuple[FunctionRecord | None, bytes, bool]:
        """See agent_queries."""
        return await self._readers.run(agent_queries.function_for, sha256, endpoint, owner)

    async def has_open_argument(self, endpoint: str, sha256: str) -> bool:
        """See agent_queries."""
        return await self._readers.run(agent_queries.has_open_argument, endpoint, sha256)

    async def accepted(self, ids: Sequence[bytes]) -> dict[bytes, int]:
        """Return when the known ones of these tasks were first accepted (unix µs)."""
        return await self._readers.run(self._queries.accepted, ids)

    async def outcomes(self, ids: Sequence[bytes], most_bytes: int = 0) -> list[ClosedTask]:
        """Return the closed ones of these tasks.

        `most_bytes`: only so many that their values and outputs have about that size; 0: all.
        """
        return await self._readers.run(self._queries.outcomes, ids, most_bytes)

    async def tasks(self, filters: TaskFilter) -> tuple[list[TaskState], str | None]:
        """Return a page, latest first, and the next page's cursor. Raises Invalid."""
        return await self._readers.run(lists.page, filters, self._queries.calls)

    async def count_tasks(self, filters: TaskFilter, most: int) -> int:
        """Count the tasks of a list, up to `most`. Raises Invalid."""
        return await self._readers.run(lists.count, filters, most)

    async def matching_ids(self, text: str, owner: str, limit: int) -> list[bytes]:
        """Return ids that a short form means, latest first. Raises Invalid.

        With an owner, only those of that owner's tasks.
        """
        return await self._readers.run(short_ids.matching, text, owner, limit, self._queries.calls)

    async def short_ids(self, ids: Sequence[bytes]) -> list[str]:
        """Return the short form of each id (short_ids.py)."""
        return await self._readers.run(short_ids.shortened, ids)

    async def retries(self, ids: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the newest retry by hand of each of these tasks that has one."""
        return await self._readers.run(queries.retries, ids)

    async def open_tasks(self, endpoint: str, after_seq: int, limit: int) -> list[OpenRow]:
        """Return open tasks of an endpoint (id) with seq > after_seq, in order of seq."""
        return await self._readers.run(self._queries.open_tasks, endpoint, after_seq, limit)

    async def open_page(self, endpoint: str, topic: str, after_seq: int, limit: int, priority: int = 0) -> OpenPage:
        """Return open tasks of a priority with seq > after_seq, in order of seq."""
        return await self._readers.run(self._queries.open_page, endpoint, topic, after_seq, limit, priority)

    async def expired(self, now_us: int, limit: int) -> list[OpenRow]:
        """Return open tasks past their expiry whose attempt is not known to run."""
        return await self._readers.run(self._queries.expired, now_us, limit)

    async def newest_us(self) -> int:
        """Return the latest time of the newest tasks, or in their ids; 0: none.

        It may be in the future, if a server's or a client's clock was ahead.
        """
        return await self._readers.run(queries.newest_us)

    async def cancels(self, limit: int) -> list[tuple[bytes, str]]:
        """Return (task id, endpoint id) of open tasks to cancel, by request time."""
        return await self._readers.run(queries.cancels, limit)

    async def open_counts(self) -> dict[str, int]:
        """Return the number of open tasks of each endpoint id."""
        return await self._readers.run(queries.open_counts)

    async def oldest_open_seq(self, endpoint: str) -> int | None:
        """Return the lowest seq of an endpoint's open tasks.

        Its task topic may be truncated below offset `seq >> 16`.
        """
        return await self._readers.run(queries.oldest_open_seq, endpoint)

    async def trace(self, key: Key, task: bytes, most: int) -> list[TracedTask]:
        """Return this task, if it is known, and the `most` nearest that an event caused."""
        return await self._readers.run(self._queries.trace, key, task, most)

    async def accounts(
        self, since_us: int, until_us: int, after: int, limit: int
    ) -> tuple[list[EventAccount], int | None]:
        """Return what became of events of this time, in their order, and the next cursor."""
        return await self._readers.run(event_accounts.page, since_us, until_us, after, limit, self._queries.calls.get)

    async def fired(self, source: str, event_id: str) -> list[tuple[Call, bytes]]:
        """Return (call, task id) of the tasks that an event caused."""
        return await self._readers.run(self._queries.fired, source, event_id)

    async def runs(self, events: Sequence[tuple[str, str]]) -> dict[tuple[str, str], list[TaskRun]]:
        """Return when the tasks ran that these events (source, id) caused."""
        return await self._readers.run(queries.runs, events)

    async def output(self, task_id: bytes) -> bytes:
        """Return an open task's output so far; a closed task has it in its attempts."""
        return await self._readers.run(lookups.output, task_id)

    # ------------------------------------------------------------ the registry

    async def functions(
        self, cursor: str = "", limit: int = 50, owner: str = ""
    ) -> tuple[list[FunctionRecord], str | None]:
        """Return a page of functions, latest first, and the next cursor.

        All versions, without their bodies.
        """
        return await self._readers.run(lookups.functions, cursor, limit, owner)

    async def function_count(self, owner: str) -> int:
        """Return how many functions an owner has, with all versions."""
        return await self._readers.run(lookups.function_count, owner)

    async def function(self, name: str, owner: str = "", of_others: bool = False) -> FunctionRecord | None:
        """Find a function; see lookups."""
        return await self._readers.run(lookups.function, name, owner, of_others)

    async def function_versions(self, name: str, owner: str) -> list[FunctionRecord]:
        """Return the versions of an owner's function, latest first, without bodies."""
        return await self._readers.run(lookups.function_versions, name, owner)

    async def endpoints(self) -> list[EndpointRecord]:
        """Return all endpoints, including revoked ones."""
        return await self._readers.run(lookups.endpoints)

    async def endpoint(self, name: str) -> EndpointRecord | None:
        """Find an endpoint by id or name."""
        return await self._readers.run(lookups.endpoint, name)

    async def endpoint_positions(self, name: str) -> list[tuple[int, EndpointRecord]]:
        """Return (position, record) of endpoints of this name, in registry order."""
        return await self._readers.run(lookups.endpoint_positions, name)

    async def deployment_positions(self, label: str) -> list[tuple[int, Deployment]]:
        """Return (position, record) of a label's versions, in registry order."""
        return await self._readers.run(lookups.deployment_positions, label)

    async def deployments(self) -> list[Deployment]:
        """Return the active deployments: the latest of each label unless removed."""
        return await self._readers.run(lookups.deployments)

    async def deployment_history(self, label: str) -> list[Deployment]:
        """Return the versions of a label, latest first, within bounds (lookups.py)."""
        return await self._readers.run(lookups.deployment_history, label)

    async def deployment_version(self, label: str, version: int) -> Deployment | None:
        """Return one version of a label."""
        return await self._readers.run(lookups.deployment_version, label, version)

    async def deployments_since(self, since_us: int) -> list[Deployment]:
        """Return the deployments in force at this time or later, oldest first."""
        return await self._readers.run(lookups.deployments_since, since_us)

    async def newest_version(self, label: str) -> int:
        """Return the highest version of a label; 0 if it was never deployed."""
        return await self._readers.run(lookups.newest_version, label)

    async def switches(self) -> list[RuleSwitch]:
        """Return the latest switch of each rule."""
        return await self._readers.run(lookups.switches)

    async def tokens(self) -> list[TokenRecord]:
        """Return all tokens, including revoked and expired ones."""
        return await self._readers.run(lookups.tokens)

    async def newer_endpoints(self, after: int) -> Newer[EndpointRecord]:
        """Return endpoints whose records are behind this position of the registry."""
        return await self._readers.run(lookups.newer_endpoints, after)

    async def newer_tokens(self, after: int) -> Newer[TokenRecord]:
        """Return tokens whose records are behind this position of the registry."""
        return await self._readers.run(lookups.newer_tokens, after)

    async def token_by_hash(self, hash_hex: str) -> TokenRecord | None:
        return await self._readers.run(lookups.token_by_hash, hash_hex)

    async def usage(self) -> dict[str, Usage]:
        """Return the latest usage report of each endpoint id."""
        return await self._readers.run(lookups.usage)

    async def task_usage(self, task_id: bytes) -> dict[int, tuple[int, int]]:
        return await self._readers.run(use_rows.of_task, task_id)

    async def task_workers(self, task_id: bytes) -> dict[int, str]:
        """Return attempt -> its worker, for a task. Raises ViewError."""
        return await self._readers.run(use_rows.workers_of, task_id)

    async def rule_usage(self, hours: Sequence[int]) -> use_rows.UsesByHour:
        return await self._readers.run(use_rows.of_rules_since, hours)

    async def claims(self) -> list[ClaimRow]:
        """Return the latest claim of each partition of oncue.control."""
        return await self._readers.run(lookups.claims)

    # ------------------------------------------------------------ events and dead letters

    async def events(self, filters: EventFilter) -> tuple[list[EventRow], str | None]:
        """Return a page of events, latest first, and the next cursor. Raises Invalid.

        With a cursor there may be more, even if the page is not full (event_lists.py).
        """
        return await self._readers.run(event_lists.page, filters)

    async def event_types(self, most: int) -> list[str]:
        """Return the types of stored events."""
        return await self._readers.run(event_lists.types, most)

    async def count_events(self, filters: EventFilter, most: int) -> tuple[int, bool]:
        """Count the events of a list, up to `most`; False if there are more."""
        return await self._readers.run(event_lists.count, filters, most)

    async def event(self, offset: int) -> EventRow | None:
        return await self._readers.run(event_lists.event, offset)

    async def events_at(self, places: Sequence[int]) -> list[EventRow]:
        """Return the events at these places, without those that retention has deleted."""
        return await self._readers.run(lookups.events_at, places)

    async def dead(
        self, cursor: str = "", limit: int = 50, owner: str = "", settled: bool = False
    ) -> tuple[list[DeadRow], str | None]:
        """Return a page of dead letters, latest first, and the next cursor.

        Only open ones unless `settled`; with an owner, only those of that owner's rules.
        """
        return await self._readers.run(lookups.dead, cursor, limit, owner, settled)

    async def open_dead(self) -> int:
        """Count open dead letters."""
        return await self._readers.run(lookups.open_dead)

    async def dead_letter(self, number: int) -> DeadRow | None:
        return await self._readers.run(lookups.dead_letter, number)

    async def skipped(self) -> list[SkippedRow]:
        """Return records of unknown kinds, which a newer version will apply."""
        return await self._readers.run(lookups.skipped)

    # ------------------------------------------------------------ maintenance

    async def delete_older_than(
        self, before_ms: int, budget_s: float = 1.0, kept: Sequence[tuple[int, int]] = ()
    ) -> int:
        """Delete closed tasks, events, dead letters and output older than this.

        `kept`: periods (first, last), in unix µs, whose records stay: the clock was wrong then.

        Works in small steps between groups of batches, for about `budget_s`. If it took that long,
        call it again. Returns the number of deleted rows.
        """
        deleted, started = 0, time.monotonic()
        at: int | None = 0
        while at is not None and time.monotonic() - started < budget_s:
            at, count = await self._writer.run(partial(retention.delete_old_tasks, self._db, at, before_ms, kept))
            deleted += count
        await self._writer.run(partial(retention.delete_finished_output, self._db))
        while time.monotonic() - started < budget_s:
            count = await self._writer.run(partial(retention.delete_old_records, self._db, before_ms, kept))
            deleted += count
            if not count:
                break
        await self._writer.run(self._projector.reset_caches)
        return deleted

    async def snapshot(self, path: Path) -> None:
        """Write a copy with positions. Raises Invalid if the file exists, ViewError."""
        await asyncio.to_thread(snapshots.write, self.path, path)

    @classmethod
    def restore(cls, path: Path, snapshot: Path) -> View:
        """Replace the view by a snapshot and open it; the old file is moved aside.

        Raises Invalid if the file is not a snapshot, ViewError.
        """
        snapshots.restore(path, snapshot)
        return cls.open(path)
