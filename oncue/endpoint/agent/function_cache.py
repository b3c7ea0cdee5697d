"""Function bodies at an agent: the latest ones in memory, all of them in the cache."""

from __future__ import annotations

from oncue.endpoint.agent.fetcher import BlobCache

BODIES_BYTES = 64 << 20  # kept in memory


class FunctionCache:
    def __init__(self, cache: BlobCache) -> None:
        self._cache = cache
        self._bodies: dict[str, bytes] = {}  # in order of use
        self._bytes = 0

    def get(self, function: str) -> bytes | None:
        """None when it is not here, or not any more."""
        body = self._bodies.pop(function, None)
        if body is not None:
            self._bodies[function] = body  # used last
            return body
        body = self._cache.read_function(function)
        if body is not None:
            self._remember(function, body)
        return body

    def store(self, function: str, body: bytes) -> None:
        """Raises OSError when it cannot be kept on disk; it is in memory then."""
        self._remember(function, body)
        self._cache.write_function(function, body)

    def _remember(self, function: str, body: bytes) -> None:
        self._bytes += len(body) - len(self._bodies.pop(function, b""))
        self._bodies[function] = body
        while self._bytes > BODIES_BYTES and len(self._bodies) > 1:
            self._bytes -= len(self._bodies.pop(next(iter(self._bodies))))
