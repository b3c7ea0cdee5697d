"""Function bodies that a pool has sent lately, by content hash."""

from __future__ import annotations

from collections import OrderedDict

from oncue.errors import FunctionError

BODIES_BYTES = 256 << 20


class FunctionBodies:
    """Bodies, the least recently used ones dropped beyond BODIES_BYTES."""

    def __init__(self) -> None:
        self._bodies: OrderedDict[str, bytes] = OrderedDict()

    def keep(self, function: str, body: bytes | None) -> bytes:
        """Return the body, and keep it.

        `body` may be None for one that is kept. Raises FunctionError if it is not.
        """
        if body is None:
            if function not in self._bodies:
                raise FunctionError(f"the pool does not have the function {function[:12]}…", remedy="give its body")
            self._bodies.move_to_end(function)
            return self._bodies[function]
        if function not in self._bodies:
            self._bodies[function] = body
            while len(self._bodies) > 1 and sum(map(len, self._bodies.values())) > BODIES_BYTES:
                self._bodies.popitem(last=False)
        return body
