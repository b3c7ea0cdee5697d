"""Messages between a pool and a worker process, over two pipes.

Each is a frame: magic, length and CRC-32 (4 bytes each, big endian), then msgpack.

    pool ──LoadFunction──► worker        pool ◄──WorkerReady─── worker
    pool ──TaskChunk─────► worker        pool ◄──ChunkResults── worker

A worker runs the tasks of a chunk in order, and writes to shared memory which one it runs
(shared_progress.py). When it dies, that task is lost, and the rest goes to another worker
uncharged.

User code runs in the worker's process, so it can reach the pipes. Bytes that are no frame put the
channel out of step: the pool replaces that worker, and a worker that reads them ends itself.
"""

from __future__ import annotations

import struct
import zlib

import msgspec

from oncue.protocol.codec import DECODE_ERRORS
from oncue.protocol.records import Ended, Stored, TaskRecord
from oncue.protocol.run_options import RunOptions

HEAD = struct.Struct(">4sII")  # MAGIC, length of the body, its CRC-32
MAGIC = b"\xc1onc"  # 0xc1 never begins a msgpack value
FRAME_BYTES = 1 << 30  # longest body; a longer one is no frame
# Exit codes of a worker that ends itself:
EXIT_PIPES_CLOSED = 113  # the function has closed its pipes
EXIT_OUT_OF_STEP = 114  # what it read was no frame
EXIT_WORN = 115  # a task changed what cannot be restored


class LoadFunction(Stored, tag="load", frozen=True):
    """Store this function; without a body: drop it."""

    function: str  # content hash: SHA-256 of the body
    body: bytes  # msgpack of functions.FunctionBody


class TaskChunk(Stored, tag="chunk", frozen=True):
    """Run these tasks: one attempt of one call."""

    n: int  # counts from 1 in each worker
    function: str  # content hash; a LoadFunction came before
    attempt: int
    tasks: list[TaskRecord]
    options: RunOptions | None = None  # of the call


ToWorker = LoadFunction | TaskChunk


class WorkerReady(Stored, tag="ready", frozen=True):
    """The worker has started."""

    pid: int
    python: str


class ChunkResults(Stored, tag="done", frozen=True):
    """Results of a chunk.

    A long chunk sends several, so that finished tasks do not wait.
    """

    n: int
    ended: list[Ended]
    last: bool


FromWorker = WorkerReady | ChunkResults

encode = msgspec.msgpack.Encoder().encode
decode_to_worker = msgspec.msgpack.Decoder(ToWorker).decode
decode_from_worker = msgspec.msgpack.Decoder(FromWorker).decode


def pack(message: ToWorker | FromWorker) -> bytes:
    """Return a message as a frame."""
    return frame(encode(message))


def frame(body: bytes) -> bytes:
    return HEAD.pack(MAGIC, len(body), zlib.crc32(body)) + body


class FrameReader:
    """Splits what a worker sends into messages.

    After bytes that are no frame, `out_of_step` is True, and it looks for the next frame.
    """

    def __init__(self) -> None:
        self.out_of_step = False
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def messages(self) -> list[FromWorker]:
        """Return the messages that are complete."""
        found, at, buffer = [], 0, self._buffer
        while len(buffer) - at >= HEAD.size:
            magic, size, crc = HEAD.unpack_from(buffer, at)
            start = at + HEAD.size
            if magic == MAGIC and size <= FRAME_BYTES:
                if len(buffer) < start + size:
                    break
                with memoryview(buffer) as view, view[start : start + size] as part:
                    if zlib.crc32(part) == crc and (message := _decoded(part)) is not None:
                        found.append(message)
                        at = start + size
                        continue
            self.out_of_step = True
            following = buffer.find(MAGIC, at + 1)
            at = following if following > 0 else len(buffer) - len(MAGIC) + 1
        if not MAGIC.startswith(bytes(buffer[at : at + len(MAGIC)])):
            self.out_of_step = True
        del buffer[:at]
        return found


def _decoded(part: memoryview) -> FromWorker | None:
    try:
        return decode_from_worker(part)
    except DECODE_ERRORS:
        return None
