"""What a pool and a worker process say to each other over two pipes: a length (4 bytes, big endian) and msgpack.

    pool ──LoadFunction(function)──► worker        pool ◄──Ready── worker
    pool ──TaskChunk(tasks)────► worker        pool ◄──ChunkResults(ended ...)── worker

A worker runs the tasks of a chunk in order and writes which one it is at to shared memory (`MARK`), so that when it dies
the pool knows whose fault it was: that task is lost, the rest of the chunk goes to another worker uncharged.
"""

from __future__ import annotations

import struct

import msgspec

from oncue.protocol.records import Ended, Stored, TaskRecord

LENGTH = struct.Struct(">I")
EXIT_PIPES_CLOSED = 113  # a worker's exit code when it finds its descriptors closed by the function
#: Shared memory of a worker: number of the chunk, index in it of the task that runs (-1: none), when it started (unix µs).
MARK = struct.Struct("=qqq")


class LoadFunction(Stored, tag="load", frozen=True):
    function: str  # content hash: SHA-256 of the body
    body: bytes  # msgpack of functions.FunctionBody


class TaskChunk(Stored, tag="chunk", frozen=True):
    n: int  # counts from 1 in each worker
    function: str  # content hash; a Load came before
    attempt: int
    tasks: list[TaskRecord]


ToWorker = LoadFunction | TaskChunk


class WorkerReady(Stored, tag="ready", frozen=True):
    pid: int
    python: str


class ChunkResults(Stored, tag="done", frozen=True):
    """Results of a chunk; several where the chunk takes long (a finished task does not wait for its neighbour)."""

    n: int
    ended: list[Ended]
    last: bool


FromWorker = WorkerReady | ChunkResults

encode = msgspec.msgpack.Encoder().encode
decode_to_worker = msgspec.msgpack.Decoder(ToWorker).decode
decode_from_worker = msgspec.msgpack.Decoder(FromWorker).decode


def pack(message: ToWorker | FromWorker) -> bytes:
    body = encode(message)
    return LENGTH.pack(len(body)) + body
