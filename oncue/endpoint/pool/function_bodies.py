"""Function bodies that a pool has sent lately, by content hash."""

from __future__ import annotations

from collections import OrderedDict

from oncue.errors import FunctionError
from oncue.functions.body import FunctionProperties, properties

BODIES_BYTES = 256 << 20
_DEFAULTS = FunctionProperties()


class FunctionBodies:
    """Bodies, the least recently used ones dropped beyond BODIES_BYTES."""

    def __init__(self) -> None:
        self._bodies: OrderedDict[str, bytes] = OrderedDict()
        self._properties: dict[str, FunctionProperties] = {}

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
            self._properties[function] = properties(body)
            while len(self._bodies) > 1 and sum(map(len, self._bodies.values())) > BODIES_BYTES:
                self._properties.pop(self._bodies.popitem(last=False)[0], None)
        return body

    def properties(self, function: str) -> FunctionProperties:
        """Return the properties of a function; defaults if it is not kept."""
        return self._properties.get(function, _DEFAULTS)
