"""Blob files: large arguments and results.

They are in a folder that agent and workers share.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from oncue.errors import Undecodable
from oncue.pickles import object_ref
from oncue.protocol.buffers import read_buffer
from oncue.protocol.payload import BlobName, Ref, pack_into, pack_ref, unpack
from oncue.protocol.records import INLINE_BYTES

if TYPE_CHECKING:
    from oncue.blobs import Blobs, Upload


class BlobFiles:
    """A BlobSource. ONCUE_BLOBS names the folder."""

    def _blobs(self) -> Blobs:
        from oncue.blobs import Blobs  # most workers never need it

        return Blobs(os.environ["ONCUE_BLOBS"], durable=False)

    def read(self, sha256: str) -> bytes:
        """Return a blob's content. Raises BlobMissing."""
        return self._blobs().read(sha256)

    def buffer(self, blob: BlobName) -> Any:
        """Return a buffer, an array's content mapped into memory.

        The agent has checked its hash. Raises BlobMissing, Undecodable.
        """
        with self._blobs().open(blob.sha256) as file:
            if os.fstat(file.fileno()).st_size != blob.size_bytes:
                raise Undecodable(f"the blob {blob.sha256[:12]}… has another size than {blob.size_bytes:,} bytes")
            return read_buffer(file)

    def put(self, *pieces: bytes) -> bytes:
        """Store the pieces of a packed value; return a packed reference."""
        with self._blobs().upload("") as upload:
            for piece in pieces:
                upload.write(upload.offset, piece)
            return pack_ref(Ref(upload.finish(), upload.offset))

    def pickled(self, value: Any) -> bytes:
        """Pack a value as a pickle: inline, or if it is large, in a blob.

        Raises CannotPack, OSError.
        """
        file = _SpillingFile(self._blobs)
        try:
            pack_into(file, value)
            return file.finish()
        finally:
            file.abort()


class _SpillingFile:
    """A file in memory. When it gets too large to be sent inline, it becomes a blob.

    pickle writes large buffers to it without copying them.
    """

    def __init__(self, blobs: Callable[[], Blobs]) -> None:
        self._blobs = blobs
        self._pieces: list[bytes] = []
        self._size = 0
        self._upload: Upload | None = None

    def write(self, data: bytes | memoryview, /) -> int:
        data = memoryview(data).cast("B")
        size = len(data)
        self._size += size
        if self._upload is None and self._size <= INLINE_BYTES:
            self._pieces.append(bytes(data))
            return size
        if self._upload is None:
            self._upload = self._blobs().upload("")
            self._upload.write(0, b"".join(self._pieces))
        self._upload.write(self._upload.offset, data)
        return size

    def finish(self) -> bytes:
        """Return the payload, or a packed reference to it."""
        if self._upload is None:
            return b"".join(self._pieces)
        return pack_ref(Ref(self._upload.finish(), self._size))

    def abort(self) -> None:
        """Delete an unfinished blob."""
        if self._upload is not None:
            self._upload.abort()


BLOBS = BlobFiles()


def _load(payload: bytes) -> Any:
    return unpack(payload, BLOBS, at_home=False)


object_ref.load = _load
