"""Blob files: large arguments and results.

They are in a folder that agent and workers share.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oncue.endpoint.pool.task_folders import STDERR, STDOUT
from oncue.errors import OncueError, Undecodable
from oncue.pickles import object_ref
from oncue.protocol.buffers import read_buffer
from oncue.protocol.payload import BlobName, Ref, pack_into, pack_ref, unpack
from oncue.protocol.records import INLINE_BYTES
from oncue.protocol.run_options import TaskFile

if TYPE_CHECKING:
    from oncue.blobs import Blobs, Upload


class BlobFiles:
    """A BlobSource. ONCUE_BLOBS of the environment names the folder.

    ONCUE_SERVER_BLOBS names the server's, if it is on this machine: a result is linked there, so
    that nobody has to send it.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def _blobs(self) -> Blobs:
        from oncue.blobs import Blobs  # most workers never need it

        return Blobs(self._environ["ONCUE_BLOBS"], durable=False)

    def read(self, sha256: str) -> bytes:
        """Return a blob's content. Raises BlobMissing."""
        return self._blobs().read(sha256)

    def buffer(self, blob: BlobName) -> Any:
        """Return a buffer, an array's content mapped into memory.

        Whoever stored it here has checked its hash: the agent, or the server whose file it links.
        Raises BlobMissing, Undecodable.
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
            return self._finish(upload)

    def put_file(self, path: str) -> tuple[str, int]:
        """Store a file; return (hash, size in bytes). Raises OncueError, OSError."""
        sha256, size = self._blobs().put_file(path)
        self._link(sha256)
        return sha256, size

    def put_streams(self, folder: Path) -> Iterator[TaskFile]:
        """Store stdout and stderr of a script, unless they are empty.

        Raises OncueError, OSError.
        """
        for name in (STDOUT, STDERR):
            if (folder / name).stat().st_size:
                yield TaskFile(name, *self.put_file(str(folder / name)), name)

    def _finish(self, upload: Upload) -> bytes:
        sha256 = upload.finish()
        self._link(sha256)
        return pack_ref(Ref(sha256, upload.offset))

    def _link(self, sha256: str) -> None:
        if server := self._environ.get("ONCUE_SERVER_BLOBS"):
            from oncue.blobs import Blobs

            with contextlib.suppress(OncueError, OSError):  # it is sent then
                Blobs(server).link(sha256, self._blobs())

    def pickled(self, value: Any) -> bytes:
        """Pack a value as a pickle: inline, or if it is large, in a blob.

        Raises CannotPack, OSError.
        """
        file = _SpillingFile(self._blobs)
        try:
            pack_into(file, value)
            return file.content() if file.upload is None else self._finish(file.upload)
        finally:
            if file.upload is not None:
                file.upload.abort()


class _SpillingFile:
    """A file in memory. When it gets too large to be sent inline, it becomes a blob.

    pickle writes large buffers to it without copying them.
    """

    def __init__(self, blobs: Callable[[], Blobs]) -> None:
        self._blobs = blobs
        self._pieces: list[bytes] = []
        self._size = 0
        self.upload: Upload | None = None

    def write(self, data: bytes | memoryview, /) -> int:
        data = memoryview(data).cast("B")
        size = len(data)
        self._size += size
        if self.upload is None and self._size <= INLINE_BYTES:
            self._pieces.append(bytes(data))
            return size
        if self.upload is None:
            self.upload = self._blobs().upload("")
            self.upload.write(0, b"".join(self._pieces))
        self.upload.write(self.upload.offset, data)
        return size

    def content(self) -> bytes:
        """Return what was written, while it is in memory."""
        return b"".join(self._pieces)


BLOBS = BlobFiles(os.environ)


def _load(payload: bytes) -> Any:
    return unpack(payload, BLOBS, at_home=False)


object_ref.load = _load
