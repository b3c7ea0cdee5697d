"""The agent's journal: a checksummed append-only file; kill -9 loses nothing.

    received ──► started ──► ended (seq) ──► acked          requeued: undoes started
                     └─────► uploading (a large result) ──► ended (seq)
    block, block history, node: the newest of each counts

A record is MARK, kind, length, CRC-32 of kind and content, content. The records of a turn are
written at once, before its effects leave the process. There is no fsync: the page cache survives
the process. SQLite is not used, because its WAL fails on NFS, where login nodes keep their homes.

Reading cuts a torn end. A damaged record in the middle is skipped up to the next mark with a right
checksum, and reported. Writing keeps in memory what a full disk refused, in order, and retries it.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from struct import Struct
from typing import Protocol

import msgspec

from oncue.disk.durable_files import sync_folder
from oncue.disk.space import NO_SPACE
from oncue.endpoint.agent.known_nodes import NodeKey
from oncue.endpoint.blocks.records import BlockHistory, BlockRecord
from oncue.errors import Undecodable
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import Ended, Stored, TaskRecord

HEAD = Struct(">2sBII")
MARK = b"\xc9\x0c"
IDENTITY, RECEIVED, STARTED, REQUEUED, ENDED, UPLOADING, ACKED, EPOCH, BLOCK, BLOCK_HISTORY, NODE = range(1, 12)
NO_NODE: NodeKey = ("", b"")
ID_BYTES = 16
REWRITE_BYTES = 32 << 20  # a smaller file is not worth writing anew,
LEAST_REWRITE_BYTES = 64 << 10  # unless the disk is full
SPARE_BYTES = 256 << 10  # kept on disk, to be given up when a full one has no room to write the file anew
#: Each start skips numbers that may have been used while a full disk kept them out of the journal.
SEQ_LEAP = 1 << 20


class TasksReceived(Stored, frozen=True):
    """Record of tasks as they arrived."""

    call: bytes  # msgpack of Call
    attempt: int
    accepted_us: int
    tasks: list[TaskRecord]


class TasksStarted(Stored, frozen=True):
    """Record of tasks handed to a worker, or requeued: ids, 16 bytes each."""

    attempt: int
    ids: bytes


class AttemptsEnded(Stored, frozen=True):
    """Record of ended attempts of one call.

    `seq` is the spool number (-1 in UPLOADING).
    """

    seq: int
    call: bytes
    accepted_us: int
    body: msgspec.Raw  # list[Ended]


class SpoolAcked(Stored, frozen=True):
    """Record of results that are durable at the server, up to `seq`."""

    seq: int


class NodeNoted(Stored, frozen=True):
    """Record of a node that may get tasks, or does no more.

    Without a block: from here on the journal knows all such nodes, or not.
    """

    block: str
    boot: bytes
    known: bool


class JournalFile(Protocol):
    """Bytes of a journal: a file, or memory in simulations. All raise OSError."""

    def read(self) -> bytes: ...

    def append(self, data: bytes | bytearray) -> int:
        """Append; return how many bytes were written."""
        ...

    def truncate(self, size: int) -> None: ...

    def replace(self, data: bytes) -> None:
        """Replace the whole content, atomically."""
        ...


class DiskFile:
    """A JournalFile on disk, with a spare file beside it for a rewrite on a full disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._spare = path.with_suffix(".spare")
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._keep_spare()

    def read(self) -> bytes:
        return self._path.read_bytes()

    def append(self, data: bytes | bytearray) -> int:
        try:
            return os.write(self._fd, data)
        except OSError as e:
            raise OSError(e.errno, e.strerror, str(self._path)) from None

    def truncate(self, size: int) -> None:
        os.ftruncate(self._fd, size)

    def replace(self, data: bytes) -> None:
        try:
            self._replace(data)
        except OSError as e:
            if e.errno not in NO_SPACE or not self._spare.exists():
                raise
            self._spare.unlink()
            self._replace(data)
        self._keep_spare()

    def _replace(self, data: bytes) -> None:
        fresh = self._path.with_suffix(".new")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)  # the rename must not overtake the content
            os.replace(fresh, self._path)
        except OSError:
            os.close(fd)
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise
        os.close(self._fd)
        self._fd = fd
        with contextlib.suppress(OSError):  # after a power cut there may be the old file, which is whole too
            sync_folder(self._path.parent)

    def _keep_spare(self) -> None:
        """Occupy SPARE_BYTES of the disk, if there is room."""
        with contextlib.suppress(OSError):
            if self._spare.exists() and self._spare.stat().st_size == SPARE_BYTES:
                return
        try:
            fd = os.open(self._spare, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as spare:
                spare.write(os.urandom(SPARE_BYTES))  # no file system compresses it, or leaves a hole
        except OSError:
            with contextlib.suppress(OSError):
                self._spare.unlink()

    def close(self) -> None:
        os.close(self._fd)


class RecoveredTasks(msgspec.Struct):
    """Received tasks that the journal holds."""

    call: bytes
    attempt: int
    accepted_us: int
    tasks: list[TaskRecord]
    started: set[bytes]  # ids of those that were handed to a worker


class Recovered(msgspec.Struct):
    """Content of the journal after a start, in order."""

    identity: bytes = b""
    held: list[RecoveredTasks] = []
    uploading: list[AttemptsEnded] = []
    spooled: list[AttemptsEnded] = []
    next_seq: int = 0
    epoch: int = 0  # the highest obeyed
    blocks: dict[str, BlockRecord] = {}
    block_history: BlockHistory = BlockHistory()
    nodes: dict[NodeKey, None] = {}
    nodes_complete: bool = False  # `nodes` has all nodes that may have started tasks
    problems: list[str] = []


class Journal:
    """Appends records, and holds what the last process left (`recovered`).

    `identity`: the journal's 8 bytes, new for a new file. Raises OSError if the file cannot be
    read or made.
    """

    def __init__(self, file: JournalFile, new_identity: bytes) -> None:
        self._file = file
        self._pending = bytearray()
        self.problem = ""  # why the last write failed; empty if it did not
        self._rewrite_bytes = REWRITE_BYTES
        content = file.read()
        records, good, problems = scan(content)
        self.recovered = fold(records)
        self.recovered.problems += problems
        self.size = good
        if good < len(content):
            file.truncate(good)
        self.identity = self.recovered.identity
        if not self.identity:
            self.identity = new_identity
            self._pending += pack(IDENTITY, new_identity)
            self.write()

    def received(self, call: bytes, attempt: int, accepted_us: int, body: bytes) -> None:
        self._pending += pack(RECEIVED, encode((call, attempt, accepted_us, msgspec.Raw(body))))

    def started(self, attempt: int, ids: bytes) -> None:
        self._pending += pack(STARTED, encode((attempt, ids)))

    def requeued(self, attempt: int, ids: bytes) -> None:
        self._pending += pack(REQUEUED, encode((attempt, ids)))

    def ended(self, seq: int, call: bytes, accepted_us: int, body: bytes) -> None:
        self._pending += pack(ENDED, encode((seq, call, accepted_us, msgspec.Raw(body))))

    def uploading(self, call: bytes, accepted_us: int, body: bytes) -> None:
        self._pending += pack(UPLOADING, encode((-1, call, accepted_us, msgspec.Raw(body))))

    def acked(self, seq: int) -> None:
        self._pending += pack(ACKED, encode((seq,)))

    def epoch(self, epoch: int) -> None:
        self._pending += pack(EPOCH, epoch.to_bytes(8, "big"))

    def block(self, block: BlockRecord) -> None:
        self._pending += pack(BLOCK, encode(block))

    def block_history(self, history: BlockHistory) -> None:
        self._pending += pack(BLOCK_HISTORY, encode(history))

    def node(self, key: NodeKey, *, known: bool) -> None:
        self._pending += pack_node(key, known=known)

    def nodes_complete(self, complete: bool) -> None:
        self._pending += pack_node(NO_NODE, known=complete)

    @property
    def unwritten(self) -> int:
        return len(self._pending)

    def write(self) -> bool:
        """Write pending records.

        Return False if the disk refused some; `problem` says why.
        """
        taken = 0
        try:
            while taken < len(self._pending):
                taken += self._file.append(self._pending[taken:] if taken else self._pending)
        except OSError as e:
            if taken > LEAST_REWRITE_BYTES:  # more than the disk has room for: leave some for a rewrite
                with contextlib.suppress(OSError):
                    self._file.truncate(self.size)
                    taken = 0
            self._advance(taken)
            self.problem = _text(e)
            # The disk is smaller than was thought: do not wait for its end the next time.
            self._rewrite_bytes = max(
                LEAST_REWRITE_BYTES, min(self._rewrite_bytes, (self.size + len(self._pending)) // 2)
            )
            return False
        self._advance(taken)
        self.problem = ""
        return True

    def _advance(self, taken: int) -> None:
        self.size += taken
        del self._pending[:taken]

    def wants_rewrite(self, live_bytes: int) -> bool:
        """Return True if the file is mostly dead."""
        size = self.size + len(self._pending)
        return size > self._rewrite_bytes and size > 4 * live_bytes

    def rewrite(self, records: Iterable[bytes]) -> bool:
        """Replace the file by these records, made by `pack`.

        Return False as `write` does.

        They must contain everything that is still needed, pending records included.
        """
        data = pack(IDENTITY, self.identity) + b"".join(records)
        try:
            self._file.replace(data)
        except OSError as e:
            self.problem = _text(e)
            return False
        self._pending.clear()
        self.size = len(data)
        return True


def _text(e: OSError) -> str:
    return f"{e.strerror or e} ({e.filename})" if e.filename else e.strerror or str(e)


def pack(kind: int, content: bytes) -> bytes:
    """Return a record as bytes."""
    return HEAD.pack(MARK, kind, len(content), zlib.crc32(content, kind)) + content


def pack_node(key: NodeKey, *, known: bool) -> bytes:
    return pack(NODE, encode((*key, known)))


def scan(data: bytes) -> tuple[list[tuple[int, memoryview]], int, list[str]]:
    """Return (good records, length of the good part of the file, problems found)."""
    records: list[tuple[int, memoryview]] = []
    problems: list[str] = []
    view = memoryview(data)
    at = good = 0
    while at < len(data):
        end = _record_end(data, view, at)
        if end:
            if at > good:
                problems.append(f"{at - good:,} damaged bytes at {good:,} were skipped")
            records.append((data[at + 2], view[at + HEAD.size : end]))
            at = good = end
        else:
            at = data.find(MARK, at + 1)
            if at < 0:
                break
    if good < len(data):
        problems.append(f"a torn end of {len(data) - good:,} bytes was cut")
    return records, good, problems


def _record_end(data: bytes, view: memoryview, at: int) -> int:
    """Return the end of the record that starts here; 0 if there is none."""
    if at + HEAD.size > len(data):
        return 0
    mark, kind, length, crc = HEAD.unpack_from(data, at)
    end: int = at + HEAD.size + length
    if mark != MARK or end > len(data) or zlib.crc32(view[at + HEAD.size : end], kind) != crc:
        return 0
    return end


def fold(records: Iterable[tuple[int, memoryview]]) -> Recovered:
    """Return the state that these records describe."""
    folded = _Fold()
    for kind, content in records:
        try:
            folded.apply(kind, content)
        except Undecodable as e:
            folded.out.problems.append(f"a record of kind {kind} was skipped: {e.message}")
    return folded.finish()


class _Fold:
    """State of the fold. A result is final; a task that came twice is held once."""

    def __init__(self) -> None:
        self.out = Recovered()
        self.latest: dict[tuple[bytes, int], RecoveredTasks] = {}  # (id, attempt)
        self.done: set[tuple[bytes, int]] = set()
        self.uploading: dict[tuple[bytes, int], AttemptsEnded] = {}
        self.spooled: dict[int, AttemptsEnded] = {}
        self.highest = -1

    def apply(self, kind: int, content: memoryview) -> None:
        if kind == IDENTITY:
            self.out.identity = bytes(content)
        elif kind == RECEIVED:
            r = decode(TasksReceived, content)
            held = RecoveredTasks(r.call, r.attempt, r.accepted_us, r.tasks, set())
            self.out.held.append(held)
            keys = [(t.id, r.attempt) for t in r.tasks]
            self.latest.update(dict.fromkeys(keys, held))
            self.done.difference_update(keys)
        elif kind in (STARTED, REQUEUED):
            s = decode(TasksStarted, content)
            for i in range(0, len(s.ids), ID_BYTES):
                task_id = s.ids[i : i + ID_BYTES]
                received = self.latest.get((task_id, s.attempt))
                if received is not None:
                    (received.started.add if kind == STARTED else received.started.discard)(task_id)
        elif kind in (ENDED, UPLOADING):
            self._ended(kind, decode(AttemptsEnded, content))
        elif kind == ACKED:
            seq = decode(SpoolAcked, content).seq
            self.highest = max(self.highest, seq)
            while self.spooled and next(iter(self.spooled)) <= seq:
                del self.spooled[next(iter(self.spooled))]
        elif kind == EPOCH:
            self.out.epoch = max(self.out.epoch, int.from_bytes(content, "big"))
        elif kind == BLOCK:
            block = decode(BlockRecord, content)
            self.out.blocks[block.id] = block
        elif kind == BLOCK_HISTORY:
            self.out.block_history = decode(BlockHistory, content)
        elif kind == NODE:
            self._noted(decode(NodeNoted, content))

    def _noted(self, node: NodeNoted) -> None:
        if not node.block:
            self.out.nodes_complete = node.known
        elif node.known:
            self.out.nodes[node.block, node.boot] = None
        else:
            self.out.nodes.pop((node.block, node.boot), None)

    def _ended(self, kind: int, frame: AttemptsEnded) -> None:
        frame = msgspec.structs.replace(frame, body=msgspec.Raw(bytes(frame.body)))
        keys = [(e.id, e.attempt) for e in decode(list[Ended], frame.body)]
        self.done.update(keys)
        if kind == UPLOADING:
            self.uploading.update(dict.fromkeys(keys, frame))
            return
        for key in keys:
            self.uploading.pop(key, None)
        self.spooled[frame.seq] = frame
        self.highest = max(self.highest, frame.seq)

    def finish(self) -> Recovered:
        out = self.out
        for held in out.held:  # a task that came twice is held once: as it came last
            held.tasks = [
                t
                for t in held.tasks
                if (t.id, held.attempt) not in self.done and self.latest[t.id, held.attempt] is held
            ]
        out.held = [h for h in out.held if h.tasks]
        out.uploading, out.spooled = list(self.uploading.values()), list(self.spooled.values())
        out.next_seq = self.highest + 1 + SEQ_LEAP if out.identity else 0
        return out
