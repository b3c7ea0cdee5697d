"""Shares of a node that tasks take while they run, by call."""

from __future__ import annotations

from collections.abc import Callable

from oncue.errors import Undecodable
from oncue.protocol.codec import decode
from oncue.protocol.records import Call
from oncue.protocol.run_options import Resources, RunOptions, merged

REMEMBERED = 1_000  # calls


class NodeShares:
    """Remembers the shares of calls. `options_of` returns what a function states."""

    def __init__(self, options_of: Callable[[str], RunOptions | None]) -> None:
        self._options_of = options_of
        #: Returns the part of a node, or the nodes, that such a task takes; 0: not known.
        self.share_of: Callable[[Resources], float] = lambda resources: 0.0
        self._known: dict[bytes, float] = {}

    def of(self, call_raw: bytes) -> float:
        """Return the share of each task of this call (msgpack of Call)."""
        found = self._known.get(call_raw)
        if found is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            found = self._known[call_raw] = self._share(call_raw)
        return found

    def _share(self, call_raw: bytes) -> float:
        try:
            call = decode(Call, call_raw)
        except Undecodable:
            return 0.0
        return self.share_of(merged(call.run, self._options_of(call.function)).resources)
