"""Parts of the table of blocks: passing facts, names of new blocks, the store."""

from __future__ import annotations

from typing import Protocol

import msgspec

from oncue.endpoint.blocks.records import BlockHistory, BlockPhase, BlockRecord
from oncue.endpoint.blocks.scaling import BlockUse

QUICK_US = 60_000_000  # a block that fails within it, counts as dead though a worker registered


class BlockStore(Protocol):
    """Store of the records: the agent's journal."""

    def block(self, block: BlockRecord) -> None: ...

    def block_history(self, history: BlockHistory) -> None: ...


class NewBlock(msgspec.Struct, frozen=True):
    """Name of a new block, and the CURVE keys of its nodes."""

    id: str
    public: str
    secret: str


class LiveBlock(msgspec.Struct):
    """Passing facts about a block that has not ended."""

    nodes: set[str]  # that are connected
    needed_us: int  # when it was busy, or needed, last
    busy: int = 0
    gang_nodes: int = 0  # that tasks over several nodes have
    unclear_us: int = 0  # since when the answer to its submission is lost
    search_us: int = 0  # when its job is searched next
    told: bool = False  # DrainBlock was taken: no task goes there any more
    handed_back: bool = False
    alone_us: int = 0  # since when none of its nodes is connected
    unheard_us: int = 0  # until when nodes of a former process's block may dial
    proven: bool = False  # it has run for QUICK_US with a worker
    released_us: int = 0
    cancel_us: int = 0  # when its job is cancelled (again)
    waits: str = ""  # the scheduler's state and reason
    position: int | None = None


def use_of(block: BlockRecord, live: LiveBlock, remaining_s: float | None, now_us: int) -> BlockUse:
    """Return a block as scaling sees it."""
    settled = block.registered_us and now_us - block.registered_us > QUICK_US and now_us >= live.unheard_us
    nodes = len(live.nodes) if settled else block.nodes  # those that did not come, or are lost, hold nothing
    phase = BlockPhase.DRAINING if block.cancelled else block.phase
    return BlockUse(
        block.id, phase, block.nodes, nodes * block.workers, block.walltime_s, live.busy, nodes, live.gang_nodes,
        now_us - live.needed_us, remaining_s, bool(block.registered_us),
    )  # fmt: skip
