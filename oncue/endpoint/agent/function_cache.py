"""Cache of function bodies: the latest in memory, all of them on disk."""

from __future__ import annotations

from oncue.endpoint.agent.fetcher import BlobCache
from oncue.functions.body import properties
from oncue.protocol.run_options import RunOptions

BODIES_BYTES = 64 << 20  # kept in memory
OPTIONS = 10_000  # functions whose options are remembered


class FunctionCache:
    """Bodies in memory, least recently used first, over a BlobCache."""

    def __init__(self, cache: BlobCache) -> None:
        self._cache = cache
        self._bodies: dict[str, bytes] = {}  # in order of use
        self._bytes = 0
        self._options: dict[str, RunOptions] = {}  # of functions that state some

    def options(self, function: str) -> RunOptions | None:
        """Return a function's run options; None without any, or if it was never here."""
        return self._options.get(function)

    def get(self, function: str) -> bytes | None:
        """Return a function's body; None if it is not here."""
        body = self._bodies.pop(function, None)
        if body is not None:
            self._bodies[function] = body  # used last
            return body
        body = self._cache.read_function(function)
        if body is not None:
            self._remember(function, body)
        return body

    def store(self, function: str, body: bytes) -> None:
        """Store a body. Raises OSError if the disk refuses it; memory has it then."""
        self._remember(function, body)
        self._cache.write_function(function, body)

    def _remember(self, function: str, body: bytes) -> None:
        if (stated := properties(body).run) is not None:
            self._options[function] = stated
            if len(self._options) > OPTIONS:
                del self._options[next(iter(self._options))]
        self._bytes += len(body) - len(self._bodies.pop(function, b""))
        self._bodies[function] = body
        while self._bytes > BODIES_BYTES and len(self._bodies) > 1:
            self._bytes -= len(self._bodies.pop(next(iter(self._bodies))))
