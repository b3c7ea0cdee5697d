"""Runs closed tasks again, as new tasks that name the old ones.

    ids | a page of a list ──► closed, not retried yet ──► calls in force ──append──► new tasks

The id of a retry follows from that of the old task, and from the request's key where a task may be
retried repeatedly. So a request that is repeated, after a lost answer or because its sender died in
the middle, makes no second task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from oncue import ids as task_ids
from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.context import ServerContext
from oncue.dispatcher.services.deployment.deployed_rules import DeployedRules
from oncue.dispatcher.services.many_tasks.lists import TaskListService, both_or_none
from oncue.dispatcher.services.many_tasks.versions import Version, VersionsInForce
from oncue.dispatcher.services.task_info import phase_of
from oncue.dispatcher.services.tasks import TaskService
from oncue.errors import Conflict, Forbidden, OncueError
from oncue.protocol import api as r
from oncue.protocol.records import Call, TaskRecord
from oncue.task_lifecycle import TaskState

GROUP_BYTES = 4 << 20  # of arguments that are in memory at once


class RetryService:
    """Retries by hand, of one task or of many."""

    def __init__(
        self, context: ServerContext, tasks: TaskService, lists: TaskListService, deployed: DeployedRules
    ) -> None:
        self._context, self._tasks, self._lists, self._deployed = context, tasks, lists, deployed
        self._appending = asyncio.Lock()  # two requests for one task make one retry

    async def retry_one(self, caller: Caller, task_id: str, request: r.RetryOneRequest) -> r.TaskInfo:
        """Run a closed task again, as a new task. Raises NotFound, Conflict, Forbidden."""
        many = r.RetryRequest(tasks=[task_id], same_version=request.same_version)
        made, errors = await self._retry(caller, await self._tasks.visible_states(caller, [task_id]), many)
        for error in errors.values():
            raise error
        old, version, new_id, accepted_us = made[0]
        args = (await self._context.view.arguments([old.id], 0))[0] or b""
        fresh = TaskState(new_id, True, version.call, args, accepted_us, event=old.event, retry_of=old.id)
        return msgspec.structs.replace(self._tasks.info(fresh), version=version.new)

    async def retry(self, caller: Caller, request: r.RetryRequest) -> r.Retried:
        """Run closed tasks again. They are durable on return.

        Raises Invalid, NotFound.
        """
        if (request.filter is None) == (not request.tasks):
            raise both_or_none()
        if request.filter is None:
            states, cursor = await self._tasks.visible_states(caller, list(dict.fromkeys(request.tasks))), None
        else:
            states, cursor = await self._lists.select(
                caller, request.filter, r.FAILED_STATES, request.cursor, request.limit, not_retried=not request.again
            )
            states = [s for s in states if s.state.closed]
        made, errors = await self._retry(caller, states, request)
        shorts = [""] * len(made)
        if not request.dry_run:
            shorts = await self._context.view.short_ids([new_id for _, _, new_id, _ in made])
        name = self._context.registry.endpoint_name
        return r.Retried(
            tasks=[
                r.RetriedTask(
                    retry_of=old.id.hex(),
                    id="" if request.dry_run else new_id.hex(),
                    short=short,
                    state=phase_of(old),
                    name=version.call.name,
                    function=version.call.function,
                    version=version.new,
                    old_version=version.old,
                    endpoint=name(version.call.endpoint),
                    rule=version.call.rule,
                )
                for (old, version, new_id, _), short in zip(made, shorts, strict=True)
            ],
            refused={i.hex(): f"{e.message}; {e.remedy}" for i, e in errors.items()},
            next=cursor,
        )

    async def _retry(
        self, caller: Caller, states: Sequence[TaskState], request: r.RetryRequest
    ) -> tuple[list[tuple[TaskState, Version, bytes, int]], dict[bytes, OncueError]]:
        """Return (old, version, new id, acceptance) of each, and errors by old id."""
        if not request.dry_run:
            self._context.check_accepting()
        versions = VersionsInForce(self._context, self._deployed)
        key = request.key or task_ids.new_uuid7().hex()
        once = request.filter is not None and not request.again
        made, errors = [], {}
        for state in states:
            try:
                version = await self._version(state, versions, request.same_version)
            except OncueError as e:
                errors[state.id] = e
            else:
                made.append((state, version, _retry_id(caller, state, "" if once else key)))
        if request.dry_run:
            return [(*entry, 0) for entry in made], errors
        accepted = await self._append(caller, made)
        return [(*entry, accepted[entry[2]]) for entry in made], errors

    async def _version(self, state: TaskState, versions: VersionsInForce, same: bool) -> Version:
        """Return what a retry of the task runs. Raises Conflict, Forbidden."""
        if not state.state.closed:
            raise Conflict(f"task {state.id.hex()} is still open", remedy="cancel it first, or wait until it has ended")
        if not state.known or state.call is None:
            raise _without_arguments(state)
        version = await versions.of(state.call, same=same)
        endpoint = self._context.registry.endpoint(version.call.endpoint)
        if endpoint is None or endpoint.revoked:
            raise Forbidden("its endpoint was revoked", remedy="submit it to another endpoint")
        return version

    async def _append(self, caller: Caller, made: Sequence[tuple[TaskState, Version, bytes]]) -> dict[bytes, int]:
        """Append the new tasks that there are not yet; return when each was accepted."""
        accepted: dict[bytes, int] = {}
        while made:
            args = await self._context.view.arguments([old.id for old, _, _ in made], GROUP_BYTES)
            group, made = made[: len(args)], made[len(args) :]
            async with self._appending:
                accepted |= await self._append_group(caller, list(zip(group, args, strict=True)))
        return accepted

    async def _append_group(
        self, caller: Caller, made: Sequence[tuple[tuple[TaskState, Version, bytes], bytes | None]]
    ) -> dict[bytes, int]:
        accepted = await self._accepted([new_id for (_, _, new_id), _ in made])
        groups: dict[Call, list[TaskRecord]] = {}
        for (old, version, new_id), args in made:
            if args is None:
                raise _without_arguments(old)
            if new_id not in accepted:
                groups.setdefault(version.call, []).append(TaskRecord(new_id, args, old.event, old.id, old.mark_us))
        appends = [
            self._tasks.append((caller.subject, task_ids.new_uuid7()), call, tasks) for call, tasks in groups.items()
        ]
        for tasks, (at, _) in zip(groups.values(), await asyncio.gather(*appends), strict=True):
            accepted |= dict.fromkeys([t.id for t in tasks], at)
        return accepted

    async def _accepted(self, ids: Sequence[bytes]) -> dict[bytes, int]:
        """Return when those of these tasks that exist were accepted."""
        await self._context.barrier(self._tasks.topics())
        return await self._context.view.accepted(ids)


def _without_arguments(state: TaskState) -> Conflict:
    return Conflict(
        f"the arguments of task {state.id.hex()} are not in the log any more",
        remedy="submit it again with its arguments",
    )


def _retry_id(caller: Caller, old: TaskState, key: str) -> bytes:
    """Return the id of a retry; with a key, it has that key's or this moment's time."""
    if not key:
        return task_ids.derived_ids(int.from_bytes(old.id[:6], "big"), b"retry\0" + old.id)[0]
    seed = b"\0".join((b"retry", caller.subject.encode(), key.encode(), old.id))
    return task_ids.derived_ids(_key_ms(key), seed)[0]


def _key_ms(key: str) -> int:
    try:
        return int.from_bytes(task_ids.parse(key)[:6], "big")
    except ValueError:  # a key of another form: the ids follow from it all the same
        return int.from_bytes(key.encode()[:6].ljust(6, b"\0"), "big")
