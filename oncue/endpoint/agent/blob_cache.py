"""Disk cache of function bodies and blobs, by hash.

Workers share the blob folder.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from oncue.blobs import Blobs, Upload
from oncue.errors import OncueError


class DiskCache:
    """A BlobCache in two folders. Nothing is fsynced: the server has all of it.

    `server_blobs`: the server's folder, if it is on this machine. Its files are linked, not sent.
    """

    def __init__(self, functions: Path, blobs: Path, server_blobs: Path | None = None) -> None:
        self._server = Blobs(server_blobs, durable=False) if server_blobs is not None else None
        self._functions, self._blobs = Blobs(functions, durable=False), Blobs(blobs, durable=False)
        self._uploads: dict[str, Upload] = {}

    def read_function(self, sha256: str) -> bytes | None:
        try:
            return self._functions.read(sha256)
        except OncueError:  # not there, or damaged
            return None

    def write_function(self, sha256: str, body: bytes) -> None:
        with _as_os_error():
            self._functions.put(body)

    def has_blob(self, sha256: str) -> bool:
        with contextlib.suppress(OncueError):
            return self._blobs.has(sha256) or (self._server is not None and self._blobs.link(sha256, self._server))
        return False

    def blob_size(self, sha256: str) -> int:
        with _as_os_error():
            return self._blobs.size(sha256)

    def read_blob(self, sha256: str, offset: int, size: int) -> bytes:
        with _as_os_error():
            return self._blobs.part(sha256, offset, size)

    def write_blob(self, sha256: str, offset: int, data: bytes) -> None:
        with _as_os_error():
            upload = self._uploads.get(sha256)
            if upload is None or offset == 0:
                if upload is not None:
                    upload.abort()
                upload = self._uploads[sha256] = self._blobs.upload(sha256)
            upload.write(offset, data)

    def finish_blob(self, sha256: str) -> None:
        upload = self._uploads.pop(sha256, None)
        with _as_os_error():
            if upload is None:  # an empty one
                upload = self._blobs.upload(sha256)
            upload.finish()

    def drop_blob(self, sha256: str, fresh_s: float = 0.0) -> bool:
        if fresh_s and 0.0 <= time.time() - self._blobs.written_s(sha256) < fresh_s:
            return False
        upload = self._uploads.pop(sha256, None)
        if upload is not None:
            upload.abort()
        with contextlib.suppress(OSError, OncueError):
            self._blobs.delete(sha256)
        return True

    def blobs(self) -> list[str]:
        return [p.name for p in self._blobs.folder.glob("[0-9a-f][0-9a-f]/*")]


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except OncueError as e:
        raise OSError(e.message) from None
