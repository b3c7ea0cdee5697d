"""Seeds with blocks hold; and bugs that are put in on purpose are found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest

from oncue.endpoint.blocks.live_block import LiveBlock
from oncue.endpoint.blocks.records import BlockHistory, BlockPhase, BlockRecord, CancelJobs, DrainBlock
from oncue.endpoint.blocks.scaling import Demand
from oncue.endpoint.blocks.table import BlockTable
from oncue.endpoint.providers.jobs import JobState, JobStatus
from tests.simulation.block_world import BlockWorld
from tests.simulation.mutants import first_that_fails

SEEDS, BUNCH, MUTANT_SEEDS = 400, 100, 400


@pytest.mark.parametrize("first", range(0, SEEDS, BUNCH))
def test_seeds_hold_with_blocks(first: int) -> None:
    for seed in range(first, first + BUNCH):
        try:
            BlockWorld(seed).run()
        except AssertionError as e:
            raise AssertionError(f"{e} (python -m tests.simulation --blocks --seed {seed} --trace)") from e


def test_a_seed_with_blocks_repeats() -> None:
    def lines(seed: int) -> list[str]:
        out: list[str] = []
        BlockWorld(seed, trace=out.append).run()
        return out

    assert lines(3) == lines(3)
    assert lines(3) != lines(4)


# ---------------------------------------------------------------- bugs on purpose


class SubmitsAgain(BlockTable):
    """Takes a submission without an answer for one that failed."""

    def on_submit_failed(self, mark: str, why: str, *, transient: bool, unclear: bool, now_us: int) -> None:
        super().on_submit_failed(mark, why, transient=transient, unclear=False, now_us=now_us)


class RecordsLater(BlockTable):
    """Records a block once its job is known."""

    def _ask(self, nodes: int, now_us: int) -> None:
        store, self._store = self._store, NoStore()
        super()._ask(nodes, now_us)
        self._store = store


class NoStore:
    def block(self, block: BlockRecord) -> None:
        pass

    def block_history(self, history: BlockHistory) -> None:
        pass


class NoBreaker(BlockTable):
    """Asks again for what died."""

    def _count_death(self, block: BlockRecord, words: str, now_us: int) -> None:
        pass


class ForgetsDeaths(BlockTable):
    """A restart of the agent closes the breaker."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.reset()


class UnlistedIsEnded(BlockTable):
    """Takes a job that squeue does not list for one that has ended."""

    def on_jobs(self, jobs: Mapping[str, JobStatus], now_us: int) -> None:
        unlisted = {b.job for b in self.blocks.values() if b.job and b.id in self.live} - jobs.keys()
        super().on_jobs({**jobs, **dict.fromkeys(unlisted, JobStatus(JobState.ENDED))}, now_us)


class RudeScaleIn(BlockTable):
    """Cancels what it scales in, whatever runs there."""

    def _drain(self, block: BlockRecord) -> None:
        super()._drain(block)
        self._out.append(CancelJobs((block.job,)))

    def _note_need(self, now_us: int, demand: Demand) -> None:
        for live in self.live.values():
            live.busy = 0


class ReleasesUntold(BlockTable):
    """Takes an adopted block for idle before its nodes have dialled."""

    def _is_drained(self, live: LiveBlock, now_us: int) -> bool:
        return not live.busy

    def _note_need(self, now_us: int, demand: Demand) -> None:
        for live in self.live.values():
            live.unheard_us = 0
        super()._note_need(now_us, demand)


class RunsIntoTheWall(BlockTable):
    """Does not look at the walltime of blocks."""

    def remaining_s(self, block: BlockRecord, now_us: int) -> float | None:
        return math.inf if block.running_us else None


class ForgetsCancels(BlockTable):
    """Does not record that a block is cancelled, and cancels once."""

    def _cancel(self, block: BlockRecord, now_us: int) -> None:
        if block.job:
            self._out += [DrainBlock(block.id), CancelJobs((block.job,))]
            self.blocks[block.id] = msgspec.structs.replace(self.blocks[block.id], phase=BlockPhase.ENDED)
            del self.live[block.id]


class GivesUpLateJobs(BlockTable):
    """Gives a job up as soon as one search has not found it."""

    def on_searched(self, found: Mapping[str, str], missing: Sequence[str], now_us: int) -> None:
        for live in self.live.values():
            live.unclear_us = min(live.unclear_us, 1)
        super().on_searched(found, missing, now_us)
        self._doubtful.clear()


@pytest.mark.parametrize(
    "table",
    [
        SubmitsAgain,
        RecordsLater,
        NoBreaker,
        ForgetsDeaths,
        UnlistedIsEnded,
        RudeScaleIn,
        ReleasesUntold,
        RunsIntoTheWall,
        ForgetsCancels,
        GivesUpLateJobs,
    ],
)
def test_a_bug_on_purpose_is_found_in_blocks(table: type[BlockTable]) -> None:
    first_that_fails(lambda seed: BlockWorld(seed, table_class=table), range(MUTANT_SEEDS))
