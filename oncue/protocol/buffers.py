"""Large buffers of arguments: blobs of their own, beside a small pickle.

pickle (protocol 5) hands out the buffers of arrays instead of copying them. The same array in many
calls is then one blob, and a worker maps it into memory.

A buffer's blob has a header of HEADER_BYTES, which starts with b"b" and the kind, then the content.
So the content is aligned as arrays need it, and nobody takes the blob for a payload.
"""

from __future__ import annotations

import hashlib
import mmap
import pickle
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

from oncue.errors import Undecodable

LEAST_BYTES = 64 * 1024  # of a buffer that is worth a blob
MOST = 64  # buffers of one call; the others stay in the pickle
HEADER_BYTES = 64
WRITABLE, READ_ONLY, BYTES, TEXT = b"w", b"r", b"y", b"s"
_LETTER = b"b"


class Buffer(NamedTuple):
    """A buffer that is not sent yet. It is shared with the value: nothing is copied."""

    kind: bytes
    content: memoryview

    @property
    def header(self) -> bytes:
        return (_LETTER + self.kind).ljust(HEADER_BYTES, b"\0")

    @property
    def size_bytes(self) -> int:
        return HEADER_BYTES + self.content.nbytes

    def sha256(self) -> str:
        """Return the hash of the blob."""
        found = hashlib.sha256(self.header)
        found.update(self.content)
        return found.hexdigest()


class OutOfBand:
    """Collects the large buffers of a value while it is pickled."""

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []
        self._kinds: dict[int, bytes] = {}  # by id() of a PickleBuffer that `_wrapped` keeps alive
        self._wrapped: list[pickle.PickleBuffer] = []

    def wrap(self, value: Any) -> Any:
        """Return large bytes or text as a buffer; every other value unchanged.

        pickle itself would copy them.
        """
        if type(value) is bytes and len(value) >= LEAST_BYTES:
            return self._wrap(BYTES, pickle.PickleBuffer(value))
        if type(value) is str and len(value) >= LEAST_BYTES:
            # Not of bytes: pickle reads a read-only buffer as a memoryview.
            return self._wrap(TEXT, pickle.PickleBuffer(bytearray(value.encode("utf-8", "surrogatepass"))))
        return value

    def _wrap(self, kind: bytes, buffer: pickle.PickleBuffer) -> pickle.PickleBuffer:
        self._kinds[id(buffer)] = kind
        self._wrapped.append(buffer)
        return buffer

    def take(self, buffer: pickle.PickleBuffer) -> bool:
        """Take a buffer out of the pickle; True leaves it in. pickle calls this."""
        try:
            content = buffer.raw()
        except BufferError:  # it is not contiguous
            return True
        kind = self._kinds.get(id(buffer))
        if kind is None and (content.nbytes < LEAST_BYTES or len(self.buffers) >= MOST):
            return True
        self.buffers.append(Buffer(kind or (READ_ONLY if content.readonly else WRITABLE), content))
        return False

    @property
    def has_wrapped(self) -> bool:
        return bool(self._wrapped)


def read_buffer(file: BinaryIO) -> Any:
    """Return what pickle expects in place of the buffer.

    Arrays are mapped into memory. They are private copies: what is written to them reaches no file.
    Raises Undecodable, OSError.
    """
    header = file.read(HEADER_BYTES)
    kind = header[1:2]
    if len(header) != HEADER_BYTES or header[:1] != _LETTER or kind not in _READERS:
        raise Undecodable(f"a blob is not a buffer that can be read here (it starts with {header[:2]!r})")
    return _READERS[kind](file)


def _mapped(file: BinaryIO, access: int) -> memoryview:
    return memoryview(mmap.mmap(file.fileno(), 0, access=access))[HEADER_BYTES:]


_READERS: dict[bytes, Callable[[BinaryIO], Any]] = {
    WRITABLE: lambda file: _mapped(file, mmap.ACCESS_COPY),
    READ_ONLY: lambda file: _mapped(file, mmap.ACCESS_READ),
    BYTES: lambda file: file.read(),
    TEXT: lambda file: file.read().decode("utf-8", "surrogatepass"),
}
