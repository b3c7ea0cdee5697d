"""Tasks that an endpoint's agent has, as far as the server knows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from oncue.dispatcher.bridge.function_limits import FunctionLimits, limited_as
from oncue.dispatcher.bridge.pending_tasks import TaskGroup
from oncue.dispatcher.bridge.server_ends import end_by_server
from oncue.protocol import bridge
from oncue.protocol.records import OK, Ended


class AgentTasks:
    """Attempts that were sent to the agent, or that it has already.

    It has the latter from an earlier owner of the endpoint.
    """

    def __init__(self) -> None:
        # Tasks that this server sent. The group has the attempt. The channel has this one, too.
        self.in_flight: dict[bytes, TaskGroup] = {}
        # Attempts that this server has not sent, or sent before a later one.
        self.held: dict[bytes, set[int]] = {}
        # The agent's inventory, while it is received: tasks whose attempt in flight it has, others.
        self._confirmed: set[bytes] = set()
        self._others: dict[bytes, set[int]] = {}
        self.listed = 0  # attempts in it
        self.limits = FunctionLimits()

    # ------------------------------------------------------------ inventory

    def begin_inventory(self) -> None:
        """Start to receive an inventory."""
        self._confirmed, self._others, self.listed = set(), {}, 0

    def add_inventory(self, part: Iterable[tuple[bytes, int]]) -> None:
        """Add a part of it. The last one takes no longer than the others."""
        in_flight, others, count = self.in_flight, self._others, 0
        for task_id, attempt in part:
            count += 1
            group = in_flight.get(task_id)
            if group is not None and group.attempt == attempt:
                self._confirmed.add(task_id)
            else:
                others.setdefault(task_id, set()).add(attempt)
        self.listed += max(count, 1)  # a message without tasks counts, too

    def end_inventory(self) -> list[bytes]:
        """Replace `held` by the inventory's attempts that are not in flight.

        Return the tasks in flight of whose current attempt the inventory knows nothing.
        """
        missing = [i for i in self.in_flight if i not in self._confirmed]
        self.held, self._others, self._confirmed = self._others, {}, set()
        return missing

    def drop(self, ids: Iterable[bytes]) -> None:
        """Forget tasks in flight, and count the others."""
        for task_id in ids:
            self.in_flight.pop(task_id, None)
        self.limits.recount(self.in_flight.values())

    # ------------------------------------------------------------ tasks that the agent has

    def add(self, group: TaskGroup) -> None:
        """Note a group that is sent to the agent."""
        in_flight = self.in_flight
        for t in group.tasks:
            in_flight[t.id] = group
        self.limits.sent(limited_as(group.call), len(group.tasks))

    def add_held(self, task_id: bytes, attempt: int) -> None:
        """Note an attempt that the agent has."""
        self.held.setdefault(task_id, set()).add(attempt)

    def remove_held(self, task_id: bytes, attempt: int) -> None:
        """Forget an attempt that has ended."""
        attempts = self.held.get(task_id)
        if attempts is not None:
            attempts.discard(attempt)
            if not attempts:
                del self.held[task_id]

    def apply_unmatched(self, e: Ended) -> None:
        """Remove the attempt of an end that `groups_of` could not match.

        A later end of the task cannot be matched either, then: it goes through the view, too.
        """
        self.remove_held(e.id, e.attempt)
        group = self.in_flight.get(e.id)
        if group is not None and (e.status == OK or group.attempt == e.attempt):
            del self.in_flight[e.id]
            self.limits.ended(limited_as(group.call), [e], 1)

    def groups_of(self, message: bridge.Results, ends: Sequence[Ended]) -> dict[bytes, TaskGroup] | None:
        """Return the group of each end, or None if an end has none.

        An end has a group if it ends an attempt in flight of the message's call.
        """
        groups: dict[bytes, TaskGroup] = {}
        in_flight, call = self.in_flight, message.call
        for e in ends:
            group = in_flight.get(e.id)
            if group is None or group.attempt != e.attempt or group.call_raw != call:
                return None
            groups[e.id] = group
        return groups if len(groups) == len(ends) else None

    def ends_of(
        self, ids: Iterable[bytes], status: int, at_us: int, failure: bytes
    ) -> list[tuple[TaskGroup, list[Ended]]]:
        """Return an end with this status for each of these tasks in flight, by group."""
        groups: dict[int, tuple[TaskGroup, list[Ended]]] = {}
        for task_id in ids:
            group = self.in_flight[task_id]
            ends = groups.setdefault(id(group), (group, []))[1]
            ends.append(end_by_server(group.one(task_id), group.attempt, status, at_us, failure))
        return list(groups.values())
