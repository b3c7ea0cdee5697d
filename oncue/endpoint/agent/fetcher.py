"""Fetches function bodies and large arguments in parts, by hash.

Pure, except for the cache handed in.

    start ──► FetchPart, FetchPart ... (a window) ──BlobPart──► written in order
    all parts written ──► the hash is right ──► on_fetched
                      └── an error, or a wrong hash ──► on_failed
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol

from oncue.protocol import bridge
from oncue.protocol.records import FUNCTION_BYTES

WINDOW = 4  # parts of one download in flight
AT_ONCE = 2  # downloads in parallel; the others wait
REQUEST_TIMEOUT_US = 30_000_000  # after which a part is requested again


class BlobCache(Protocol):
    """Store of bodies and blobs by hash: folders, or memory in simulations.

    All raise OSError.
    """

    def read_function(self, sha256: str) -> bytes | None:
        """Return a function's body; None if it is not here."""
        ...

    def write_function(self, sha256: str, body: bytes) -> None: ...

    def has_blob(self, sha256: str) -> bool: ...

    def blob_size(self, sha256: str) -> int: ...

    def read_blob(self, sha256: str, offset: int, size: int) -> bytes: ...

    def write_blob(self, sha256: str, offset: int, data: bytes) -> None:
        """Write a part at `offset`, and drop what was at the offset and behind it.

        Parts come in order. The blob is not visible before `finish_blob`.
        """
        ...

    def finish_blob(self, sha256: str) -> None: ...

    def drop_blob(self, sha256: str, fresh_s: float = 0.0) -> bool:
        """Delete a blob, unless it was written in the last `fresh_s` seconds.

        Return False if it stays.
        """
        ...

    def blobs(self) -> list[str]: ...


class Download:
    """A body or blob on its way here."""

    def __init__(self, sha256: str, blob: bool) -> None:
        self.sha256, self.blob = sha256, blob
        self.restart()

    def restart(self) -> None:
        self.size = -1  # not known
        self.got = self.asked = 0  # bytes, in order
        self.hash = hashlib.sha256()
        self.parts: list[bytes] = []  # of a body
        self.early: dict[int, bytes] = {}  # came before their turn


class ContentFetcher:
    """Runs downloads, AT_ONCE at a time."""

    def __init__(
        self,
        cache: BlobCache,
        on_fetched: Callable[[Download, bytes], None],
        on_failed: Callable[[Download, str], None],
    ) -> None:
        self._cache, self._on_fetched, self._on_failed = cache, on_fetched, on_failed
        self._fetches: dict[str, Download] = {}
        self._received_us = 0

    def start(self, sha256: str, *, blob: bool) -> None:
        """Queue a download, unless it runs already."""
        if sha256 not in self._fetches:
            self._fetches[sha256] = Download(sha256, blob)

    def stop(self, sha256: str) -> None:
        """Drop a download that nobody waits for any more."""
        self._fetches.pop(sha256, None)

    def new_session(self) -> None:
        """Request again what was requested in the last session."""
        for fetch in self._fetches.values():
            fetch.asked = fetch.got
            fetch.early.clear()

    def next_requests(self, now_us: int) -> list[bridge.FetchPart]:
        """Return the requests to send now."""
        if not self._fetches:
            self._received_us = now_us
            return []
        if now_us - self._received_us > REQUEST_TIMEOUT_US:
            self._received_us = now_us
            self.new_session()
        wants: list[bridge.FetchPart] = []
        for fetch in list(self._fetches.values())[:AT_ONCE]:
            # The first part brings the size: until then request only that one.
            limit = bridge.PART_BYTES if fetch.size < 0 else min(fetch.size, fetch.got + WINDOW * bridge.PART_BYTES)
            while fetch.asked < limit:
                wants.append(bridge.FetchPart(fetch.sha256, fetch.asked))
                fetch.asked += bridge.PART_BYTES
        return wants

    def on_part(self, part: bridge.BlobPart, body: bytes, now_us: int) -> None:
        """Accept a part.

        A complete download calls `on_fetched`, a failed one `on_failed`.
        """
        self._received_us = now_us
        fetch = self._fetches.get(part.sha256)
        if fetch is None:
            return
        if part.why:
            return self._fail(fetch, part.why)
        if not fetch.blob and part.size_bytes > FUNCTION_BYTES:
            return self._fail(fetch, f"a function of {part.size_bytes:,} bytes is over the limit of {FUNCTION_BYTES:,}")
        fetch.size = part.size_bytes
        if part.offset_bytes >= fetch.got and (body or not fetch.size):
            fetch.early[part.offset_bytes] = body
        try:
            self._write_in_order(fetch)
        except OSError as e:
            return self._fail(fetch, f"the endpoint cannot keep it: {e.strerror or e}")
        if fetch.got >= fetch.size:
            self._complete(fetch)

    def _write_in_order(self, fetch: Download) -> None:
        while fetch.got in fetch.early:
            data = fetch.early.pop(fetch.got)
            if not data:
                break
            if fetch.blob:
                self._cache.write_blob(fetch.sha256, fetch.got, data)
            else:
                fetch.parts.append(data)
            fetch.hash.update(data)
            fetch.got += len(data)
            fetch.asked = max(fetch.asked, fetch.got)

    def _complete(self, fetch: Download) -> None:
        if fetch.hash.hexdigest() != fetch.sha256:
            return self._fail(fetch, "the content that the server sent has a wrong hash")
        body = b"".join(fetch.parts)
        try:
            if fetch.blob:
                self._cache.finish_blob(fetch.sha256)
        except OSError as e:
            return self._fail(fetch, f"the endpoint cannot keep it: {e.strerror or e}")
        del self._fetches[fetch.sha256]
        self._on_fetched(fetch, body)

    def _fail(self, fetch: Download, why: str) -> None:
        del self._fetches[fetch.sha256]
        self._on_failed(fetch, why)
