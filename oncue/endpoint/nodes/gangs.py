"""Tasks over several whole nodes of one block (gangs), and their nodes. Sans-IO.

    want ──► nodes are kept: they get no other task ──all are idle──► start: the first one runs it
                                            its end, its requeue, a lost node ──► released

A gang that waits keeps its nodes, also those on which another one still runs. So small tasks do not
overtake it for ever, and of several gangs the one that waits longest chooses first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from oncue.endpoint.nodes.node_pool import NodePool
from oncue.protocol import bridge
from oncue.protocol.codec import encode
from oncue.protocol.records import ERROR, LOST, Ended, Failure, TaskRecord
from oncue.protocol.run_options import NO_OPTIONS, Resources, RunOptions

Key = tuple[str, Resources | None]  # function, and what the call states
Ends = list[tuple[str, int, list[Ended]]]
#: After a failure, until its other nodes must be heard of: were they lost, the task is.
HEARD_US = 2 * bridge.BEAT_MS * 1_000


def key_of(function: str, options: RunOptions | None) -> Key:
    """Return the key of a call. Tasks with the same one need the same nodes."""
    return function, None if options is None else options.resources


class Gang(msgspec.Struct, eq=False):
    """A task that runs, and its nodes. The first one runs it."""

    task: bytes
    nodes: list[NodePool]
    block: str


class Doubt(msgspec.Struct, eq=False):
    """A failure of a gang, until it is known that none of its nodes was lost."""

    gang: Gang
    function: str
    ended: Ended
    at_us: int


class Gangs:
    """Gangs that run, and nodes that are kept for those that wait.

    `nodes` returns all nodes. `remains` returns True if a block does not end within some time.
    `changed` is called with each node that was taken or released.
    """

    def __init__(
        self,
        nodes: Callable[[], Iterable[NodePool]],
        remains: Callable[[str, int], bool],
        changed: Callable[[NodePool], None],
    ) -> None:
        self._nodes, self._remains, self._changed = nodes, remains, changed
        self._running: dict[bytes, Gang] = {}
        self._runs: dict[str, bytes] = {}  # name of a node -> the gang's task
        self._wanted: dict[Key, tuple[int, int]] = {}  # (nodes, need_us), the longest waiting first
        self._kept: dict[Key, list[NodePool]] = {}
        self._kept_for: dict[str, Key] = {}  # name of a node
        self._whole: dict[str, set[bytes]] = {}  # block -> gangs of which only the first node is known
        self._doubts: list[Doubt] = []
        self._stale = False  # nodes may be found that were not there before

    def has(self, node: NodePool) -> bool:
        """Return True if a node is a gang's, or kept for one."""
        return node.name in self._runs or node.name in self._kept_for or node.block in self._whole

    def runs(self, node: NodePool) -> bool:
        """Return True if a gang runs on a node."""
        return node.name in self._runs or node.block in self._whole

    # ------------------------------------------------------------ those that wait

    def want(self, wanted: Mapping[Key, tuple[int, int]]) -> None:
        """Keep nodes for these gangs, by (nodes, time that they need), and no others."""
        for key in [k for k in self._wanted if k not in wanted]:
            del self._wanted[key]
            self._release_kept(key)
        self._wanted.update(wanted)
        if self._wanted:
            self._place()

    def is_ready(self, key: Key, nodes: int, need_us: int) -> bool:
        """Return True if a gang can start now. Else nodes are kept for it."""
        if self._wanted.get(key) != (nodes, need_us):
            self._wanted[key] = (nodes, need_us)
            self._stale = True
        if self._stale:
            self._place()
        return self._is_free(self._kept.get(key))

    def ready(self) -> int:
        """Return how many of those that wait can start now."""
        return sum(map(self._is_free, self._kept.values())) if self._kept else 0

    def _is_free(self, kept: list[NodePool] | None) -> bool:
        return kept is not None and all(node.idle and node.name not in self._runs for node in kept)

    def _place(self) -> None:
        self._stale = False
        for key, (count, need_us) in self._wanted.items():
            kept = self._kept.get(key)
            if kept is not None and all(self._may_take(n, need_us) for n in kept):
                continue
            self._release_kept(key)
            if chosen := self._choose(count, need_us):
                self._kept[key] = chosen
                self._kept_for.update((node.name, key) for node in chosen)
                for node in chosen:
                    self._changed(node)

    def _may_take(self, node: NodePool, need_us: int) -> bool:
        return bool(node.ready) and not node.draining and not node.gone and self._remains(node.block, need_us)

    def _choose(self, count: int, need_us: int) -> list[NodePool]:
        """Return nodes of the block where the wait is shortest, if one has enough."""
        by_block: dict[str, list[NodePool]] = {}
        for node in self._nodes():
            if node.name not in self._kept_for and node.block not in self._whole and self._may_take(node, need_us):
                by_block.setdefault(node.block, []).append(node)
        choices = []
        for nodes in by_block.values():
            if len(nodes) >= count:
                nodes.sort(key=self._load)
                choices.append((sum(map(self._load, nodes[:count])), len(nodes), nodes[:count]))
        return min(choices, key=lambda c: c[:2])[2] if choices else []

    def _load(self, node: NodePool) -> int:
        """Return how much is to be waited for until a node is idle."""
        return len(node.tasks.held) + (node.size if node.name in self._runs else 0)

    def _release_kept(self, key: Key) -> None:
        for node in self._kept.pop(key, ()):
            del self._kept_for[node.name]
            self._changed(node)

    # ------------------------------------------------------------ those that run

    def start(self, key: Key, task: bytes) -> Gang | None:
        """Give the kept nodes to a task; None if they are not idle."""
        kept = self._kept.get(key)
        if kept is None or not self._is_free(kept):
            return None
        gang = self._running[task] = Gang(task, kept, kept[0].block)
        self._runs.update((node.name, task) for node in kept)
        del self._wanted[key]
        self._release_kept(key)
        return gang

    def options(self, gang: Gang, options: RunOptions | None) -> RunOptions:
        """Return a call's options, with the names of the gang's nodes."""
        return msgspec.structs.replace(options or NO_OPTIONS, hosts=tuple(n.facts.host for n in gang.nodes))

    def adopt(self, node: NodePool) -> None:
        """Note the gangs that a node runs since before the agent's restart.

        Their other nodes are not known: until such a gang ends, its block gets nothing else.
        """
        for chunk in node.tasks.chunks.values():
            for task in node.tasks.live(chunk) if chunk.nodes else ():
                if task.id not in self._running:
                    self._running[task.id] = Gang(task.id, [node], node.block)
                    self._whole.setdefault(node.block, set()).add(task.id)
                    for key in [k for k, kept in self._kept.items() if kept[0].block == node.block]:
                        self._release_kept(key)
                        self._stale = True
                    self._changed_block(node.block)

    def _release(self, task: bytes) -> None:
        gang = self._running.pop(task)
        for node in gang.nodes:
            self._runs.pop(node.name, None)
            self._changed(node)
        adopted = self._whole.get(gang.block)
        if adopted is not None:
            adopted.discard(task)
            if not adopted:
                del self._whole[gang.block]
                self._changed_block(gang.block)
        self._stale = True

    def _changed_block(self, block: str) -> None:
        for node in self._nodes():
            if node.block == block:
                self._changed(node)

    def on_gone(self, gone: NodePool) -> NodePool | None:
        """End the gang of a node that is gone, and keep other nodes for one that waits.

        Return the node that has to end the gang's task.
        """
        if (key := self._kept_for.get(gone.name)) is not None:
            self._release_kept(key)
            self._stale = True
        gang = self._running.get(self._runs.get(gone.name, b""))
        if gang is not None and gang.nodes[0] is not gone and gang.task in gang.nodes[0].tasks.held:
            gang.nodes[0].lose_tasks({gang.task}, _lost_words(gang, gone))
            return gang.nodes[0]
        return None

    # ------------------------------------------------------------ ends

    def on_requeued(self, tasks: Iterable[TaskRecord]) -> None:
        """Release the nodes of gangs that did not begin, or were handed back."""
        for task in tasks:
            if task.id in self._running:
                self._release(task.id)

    def on_ended(self, ended: Ends, now_us: int) -> Ends:
        """Release the nodes of gangs that have ended; return all ends that are certain."""
        if not self._running:
            return ended
        certain: Ends = []
        for function, attempt, ends in ended:
            sure = [e for e in ends if not self._is_doubtful(e, function, now_us)]
            for e in sure:
                if e.id in self._running:
                    self._release(e.id)
            if sure:
                certain.append((function, attempt, sure))
        return certain

    def _is_doubtful(self, e: Ended, function: str, now_us: int) -> bool:
        gang = self._running.get(e.id)
        if gang is None or e.status != ERROR or len(gang.nodes) == 1:
            return False
        self._doubts.append(Doubt(gang, function, e, now_us))
        return True

    def in_doubt(self, node: NodePool) -> bool:
        """Return True if a failure that came from this node is in doubt."""
        return any(doubt.gang.nodes[0] is node for doubt in self._doubts)

    def settled(self) -> Ends:
        """Return failures that are in doubt no more: it is known how all nodes are."""
        found: Ends = []
        for doubt in self._doubts[:] if self._doubts else ():
            others = doubt.gang.nodes[1:]
            gone = next((n for n in others if n.gone), None)
            if gone is None and not all(n.session.received_us > doubt.at_us + HEARD_US for n in others):
                continue
            end = doubt.ended
            if gone is not None:
                failure = Failure("oncue.TaskLost", _lost_words(doubt.gang, gone))
                end = msgspec.structs.replace(end, status=LOST, value=encode(failure))
            self._doubts.remove(doubt)
            self._release(doubt.gang.task)
            found.append((doubt.function, end.attempt, [end]))
        return found


def _lost_words(gang: Gang, gone: NodePool) -> str:
    return f"{gone.where}, one of {len(gang.nodes)} that ran the task, was lost: {gone.gone}"
