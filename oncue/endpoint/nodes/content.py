"""Content that nodes fetch from the agent, and send to it, by hash.

Function bodies and large arguments are at the agent while a task needs them. Large results of nodes
go to the agent's folder of blobs, from where they go to the server.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from oncue.blobs import Blobs, Upload
from oncue.errors import OncueError

UPLOADS = 4  # unfinished ones of a node; a node has one


class NodeContent(Protocol):
    """Content by hash: folders, or memory. All raise OSError, OncueError."""

    def read(self, sha256: str, offset: int, size: int) -> tuple[int, bytes]:
        """Return (size of the whole, at most `size` bytes from `offset` on)."""
        ...

    def write(self, node: str, sha256: str, offset: int, size: int, part: bytes) -> int:
        """Write a part of a blob that a node sends; return the next offset."""
        ...

    def abort(self, node: str) -> None:
        """Drop what the node has not sent to its end."""
        ...


class DiskContent:
    """NodeContent of an agent: its functions, and its folder of blobs.

    `function` returns a function's body, or None. Raises DiskFull.
    """

    def __init__(self, function: Callable[[str], bytes | None], blobs: Path) -> None:
        self._function, self._blobs = function, Blobs(blobs, durable=False)
        self._uploads: dict[str, OrderedDict[str, Upload]] = {}

    def read(self, sha256: str, offset: int, size: int) -> tuple[int, bytes]:
        body = self._function(sha256)
        if body is not None:
            return len(body), body[offset : offset + size]
        return self._blobs.size(sha256), self._blobs.part(sha256, offset, size)

    def write(self, node: str, sha256: str, offset: int, size: int, part: bytes) -> int:
        uploads = self._uploads.setdefault(node, OrderedDict())
        if self._blobs.has(sha256):
            self._drop(uploads, sha256)
            return size
        if offset == 0:
            self._drop(uploads, sha256)
        upload = uploads.get(sha256)
        if upload is None:
            while len(uploads) >= UPLOADS:
                self._drop(uploads, next(iter(uploads)))
            upload = uploads[sha256] = self._blobs.upload(sha256, size)
        try:
            at = upload.write(offset, part)
            if at >= size:
                upload.finish()
                del uploads[sha256]
        except OncueError:
            self._drop(uploads, sha256)
            raise
        return at

    def abort(self, node: str) -> None:
        uploads = self._uploads.pop(node, None)
        for sha256 in list(uploads or ()):
            with contextlib.suppress(OSError):
                self._drop(uploads or OrderedDict(), sha256)

    @staticmethod
    def _drop(uploads: OrderedDict[str, Upload], sha256: str) -> None:
        upload = uploads.pop(sha256, None)
        if upload is not None:
            upload.abort()
