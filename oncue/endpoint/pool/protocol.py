"""Messages between a pool and a worker process, over two pipes.

Each is a length (4 bytes, big endian) and msgpack.

    pool ──LoadFunction──► worker        pool ◄──WorkerReady─── worker
    pool ──TaskChunk─────► worker        pool ◄──ChunkResults── worker

A worker runs the tasks of a chunk in order, and writes to shared memory which one it runs
(shared_progress.py). When it dies, that task is lost, and the rest goes to another worker
uncharged.
"""

from __future__ import annotations

import struct

import msgspec

from oncue.protocol.records import Ended, Stored, TaskRecord

LENGTH = struct.Struct(">I")
EXIT_PIPES_CLOSED = 113  # exit code of a worker whose pipes the function has closed


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
    """Return a message with its length in front."""
    body = encode(message)
    return LENGTH.pack(len(body)) + body
