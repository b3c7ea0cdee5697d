"""Tasks that a node holds, by chunk, as its agent knows them. Pure.

A task that was sent may have begun, unless the node fetches its function or arguments still. So if
the node vanishes, those that may have begun are lost, and the rest runs elsewhere, uncharged.
"""

from __future__ import annotations

import msgspec

from oncue.errors import Undecodable
from oncue.protocol.bridge import RECALLED
from oncue.protocol.payload import REF, ref_of
from oncue.protocol.records import CANCELLED, LOST, Ended, TaskRecord


class NodeChunk(msgspec.Struct, eq=False):
    """Tasks of one attempt of one function, sent together."""

    function: str
    attempt: int
    tasks: list[TaskRecord]
    left: int  # that have not ended
    sent_us: int
    short: bool  # it should end soon
    width: int = 1  # workers' room that it takes
    nodes: int = 0  # whole ones that its task has
    begun: bool = False  # they may have begun, whatever the node fetches
    recalled: bool = False


class NodeTasks:
    """Held tasks by id, and the content that the node has fetched for them."""

    def __init__(self, *, whole_history: bool) -> None:
        """`whole_history`: all content that the node has was sent by this process."""
        self.held: dict[bytes, NodeChunk] = {}
        self.chunks: dict[int, NodeChunk] = {}  # by id(), in the order in which they were sent
        self._young: dict[int, NodeChunk] = {}  # not late yet, by id(), in the order in which they were sent
        #: Workers' room that chunks take: those that are not short, and the short ones.
        self.long = self.short = 0
        self._sent: set[str] = set()  # content that was sent to its end
        self._whole_history = whole_history

    def add(self, chunk: NodeChunk) -> None:
        self.chunks[id(chunk)] = self._young[id(chunk)] = chunk
        self.held.update(dict.fromkeys([t.id for t in chunk.tasks], chunk))
        self._count(chunk, chunk.width)

    def _count(self, chunk: NodeChunk, width: int) -> None:
        if chunk.short:
            self.short += width
        else:
            self.long += width

    def mark_long(self, chunk: NodeChunk) -> None:
        """Note that a chunk takes longer than its function's tasks did."""
        if chunk.short:
            self._count(chunk, -chunk.width)
            chunk.short = False
            self._count(chunk, chunk.width)

    def take_late(self, before_us: int) -> list[NodeChunk]:
        """Return chunks that were sent before this time and not recalled, each once."""
        late: list[NodeChunk] = []
        for chunk in self._young.values():
            if chunk.sent_us >= before_us:
                break
            late.append(chunk)
        for chunk in late:
            del self._young[id(chunk)]
        return [chunk for chunk in late if not chunk.recalled]

    def live(self, chunk: NodeChunk) -> list[TaskRecord]:
        """Return the chunk's tasks that have not ended."""
        held = self.held
        return [t for t in chunk.tasks if held.get(t.id) is chunk]

    # ------------------------------------------------------------ ends

    def end(self, ends: list[Ended]) -> tuple[list[Ended], list[TaskRecord]]:
        """Take ends of attempts. Return (those held here, tasks that come back unstarted)."""
        held, good = self.held, []
        back: list[TaskRecord] = []
        for e in ends:
            chunk = held.get(e.id)
            if chunk is None or chunk.attempt != e.attempt:
                continue  # a double, or nothing of this node
            if e.status == CANCELLED and e.value == RECALLED:
                back += [t for t in chunk.tasks if t.id == e.id]
            else:
                good.append(e)
            del held[e.id]
            chunk.left -= 1
            if not chunk.left:
                self._forget(chunk)
        return good, back

    def _forget(self, chunk: NodeChunk) -> None:
        del self.chunks[id(chunk)]
        self._young.pop(id(chunk), None)
        self._count(chunk, -chunk.width)

    def take_missing(self, named: dict[bytes, int]) -> list[TaskRecord]:
        """Remove and return the tasks that the node does not name: they did not reach it."""
        missing = [i for i, chunk in self.held.items() if named.get(i) != chunk.attempt]
        return self._take(set(missing)) if missing else []

    def _take(self, ids: set[bytes]) -> list[TaskRecord]:
        return [task for _, tasks in self.take(ids) for task in tasks]

    def take(self, ids: set[bytes]) -> list[tuple[NodeChunk, list[TaskRecord]]]:
        """Remove and return those of these tasks that are here, by chunk."""
        taken: list[tuple[NodeChunk, list[TaskRecord]]] = []
        for chunk in list(self.chunks.values()):
            gone = [t for t in self.live(chunk) if t.id in ids]
            for t in gone:
                del self.held[t.id]
            if gone:
                taken.append((chunk, gone))
            chunk.left -= len(gone)
            if not chunk.left:
                self._forget(chunk)
        return taken

    def take_all(self) -> tuple[list[tuple[NodeChunk, list[TaskRecord]]], list[TaskRecord]]:
        """Remove all; return (those that may have begun, by chunk; the others)."""
        begun: list[tuple[NodeChunk, list[TaskRecord]]] = []
        rest: list[TaskRecord] = []
        for chunk in self.chunks.values():
            tasks = self.live(chunk)
            some = [t for t in tasks if chunk.begun or self._may_have_begun(chunk, t)]
            if some:
                begun.append((chunk, some))
            if len(some) < len(tasks):
                here = {t.id for t in some}
                rest += [t for t in tasks if t.id not in here]
        self.held.clear()
        self.chunks.clear()
        self._young.clear()
        self.long = self.short = 0
        return begun, rest

    # ------------------------------------------------------------ content

    def on_sent(self, sha256: str) -> None:
        """Note that the node has got this content, or made it."""
        self._sent.add(sha256)

    def _may_have_begun(self, chunk: NodeChunk, task: TaskRecord) -> bool:
        if not self._whole_history:
            return True
        return chunk.function in self._sent and self._sent.issuperset(blobs_of(task))


def blobs_of(task: TaskRecord) -> list[str]:
    """Return the blobs that a task's arguments need."""
    if task.args[:1] != REF:
        return []
    try:
        ref = ref_of(task.args)
    except Undecodable:
        return []
    return [] if ref is None else [blob.sha256 for blob in ref.blobs]


def lost_ends(chunk: NodeChunk, tasks: list[TaskRecord], at_us: int, failure: bytes) -> list[Ended]:
    """Return the ends of these tasks of a chunk, which are lost."""
    return [
        Ended(t.id, chunk.attempt, LOST, chunk.sent_us, at_us, failure, b"", t.event, t.retry_of, t.mark_us)
        for t in tasks
    ]
