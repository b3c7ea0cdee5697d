"""Result records whose append to the log is in progress."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from oncue.dispatcher.bridge.effects import StoreResults
from oncue.dispatcher.bridge.pending_tasks import TaskGroup
from oncue.protocol import bridge
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION, Call, Ended


class ResultAppends:
    """Appends of one endpoint's results.

    A token identifies each append and each check before it.
    """

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._token = 0
        self._ends: dict[int, list[Ended]] = {}  # token -> ends

    def next_token(self) -> int:
        """Return a token that was not used before. Tokens increase."""
        self._token += 1
        return self._token

    def start(
        self,
        token: int,
        message: bridge.Results,
        ends: list[Ended],
        call: Call,
        closing: list[Ended] | None,
        body: bytes = b"",
    ) -> StoreResults:
        """Return the append of ends that the agent reported.

        `closing`: the ends that close their tasks; None if only the view knows them. `body`: `ends`
        as msgpack; b"" to encode them.
        """
        self._ends[token] = ends
        packed = msgspec.Raw(body) if body else ends
        call_raw, share = msgspec.Raw(message.call), message.node_share
        record = encode((VERSION, call_raw, self._endpoint, message.accepted_us, packed, 0, share))
        return StoreResults(record, token, call, closing or [], closing is not None)

    def start_by_server(
        self, group: TaskGroup, ends: list[Ended], closing: list[Ended] | None, epoch: int
    ) -> StoreResults:
        """Return the append of ends that the server decided.

        `epoch`: of the claim that the server held at the decision. `closing`: see `start`.
        """
        token = self.next_token()
        self._ends[token] = ends
        record = encode((VERSION, group.call, "", group.accepted_us, ends, epoch))
        return StoreResults(record, token, group.call, closing or [], closing is not None, True)

    def finish(self, token: int) -> None:
        """Remove an append that is durable. A token of a check is allowed."""
        self._ends.pop(token, None)

    def fail(self, token: int) -> list[Ended]:
        """Remove an append that failed.

        Return its ends without those that the agent has sent again.
        """
        ends = self._ends.pop(token, [])
        repeated = self.task_ids()
        return [e for e in ends if e.id not in repeated]

    def task_ids(self) -> set[bytes]:
        """Return the tasks that have an end in an append."""
        return {e.id for e in self._all()}

    def has(self, task_id: bytes) -> bool:
        """Return True if an end of the task is in an append."""
        return any(e.id == task_id for e in self._all())

    def _all(self) -> Iterator[Ended]:
        return (e for ends in self._ends.values() for e in ends)
