"""Table of an endpoint's blocks: a state machine, sans-IO.

    tick(demand, busy) ──► plan (scaling.py) ──► record ASKED ──► SubmitBlock ──► on_submitted
                                                     └─ no answer ──► FindBlocks ──► on_searched
    PollJobs ──► on_jobs        nodes ──► on_node_joined, on_node_left

Each change is given to the store (the journal) before the effect that it causes is taken with
`take_effects`, which holds submissions back until the journal is written. So a block is in the
journal before its job exists: an agent that starts on any machine finds and adopts what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from oncue.endpoint.blocks import breaker
from oncue.endpoint.blocks.live_block import QUICK_US, BlockStore, LiveBlock, NewBlock, use_of
from oncue.endpoint.blocks.records import (
    STDERR_CHARS,
    BlockEffect,
    BlockHistory,
    BlockPhase,
    BlockRecord,
    CancelJobs,
    DrainBlock,
    EndBlock,
    FindBlocks,
    PollJobs,
    ReleaseBlock,
    SubmitBlock,
    end_words,
    mark_of,
)
from oncue.endpoint.blocks.scaling import BlockUse, Demand, Plan, ScalingLimits, covers, end_margin_s, plan, with_use
from oncue.endpoint.providers.jobs import SETTLE_S, JobEnding, JobState, JobStatus

SECOND_US = 1_000_000
SEARCH_US, SETTLE_US = 5_000_000, int(SETTLE_S * 1e6)
POLL_US, POLL_SOON_US = 10_000_000, 2_000_000
JOIN_US = 600_000_000  # from the job's start until a worker must have registered
ADOPT_US = 120_000_000  # after a start, for the nodes of an adopted block to dial this agent
ALONE_US = 120_000_000  # without a connected node, until a block that had some is given up
RELEASE_US = 15_000_000  # for released nodes to exit, before their job is cancelled
CANCEL_AGAIN_US = 30_000_000
DOUBT_US = 900_000_000  # a job that was given up may appear so much later; it is cancelled then
KEPT_ENDED = 20
LIVE = (BlockPhase.ASKED, BlockPhase.PENDING, BlockPhase.RUNNING, BlockPhase.DRAINING)
WAITING = (BlockPhase.ASKED, BlockPhase.PENDING)
#: Endings that are the scheduler's or a person's doing, once a worker has registered.
OUTSIDE = (JobEnding.CANCELLED, JobEnding.NODE, JobEnding.WALLTIME)


class BlockTable:
    """Blocks of one endpoint. `limits.max` 0: it asks for none."""

    def __init__(
        self,
        endpoint: str,
        limits: ScalingLimits,
        store: BlockStore,
        blocks: Iterable[BlockRecord],
        history: BlockHistory,
        now_us: int,
        new_block: Callable[[], NewBlock],
    ) -> None:
        self.endpoint, self.limits = endpoint, limits
        self._store, self._new_block = store, new_block
        self.history = breaker.until_now(history, now_us)
        self.blocks = {b.id: b for b in blocks}
        self.live = {b.id: LiveBlock(set(), now_us) for b in self.blocks.values() if b.phase in LIVE}
        self.plan = Plan()
        self.stopping = False
        self._out: list[BlockEffect] = []
        self._initial = 0 if self.live else limits.initial  # blocks to hold at first, whatever the demand
        self._poll_us, self._polling = 0, False
        self._doubtful: dict[str, int] = {}  # mark of a job that was given up -> until when it is searched
        self._doubt_us = 0
        self._adopt(now_us)

    def _adopt(self, now_us: int) -> None:
        """Go on with the blocks of a former process."""
        for b in list(self.blocks.values()):
            live = self.live.get(b.id)
            if live is None:
                if not b.job and now_us - b.ended_us < DOUBT_US:
                    self._doubtful[self.mark(b)] = now_us + DOUBT_US
                continue
            live.unheard_us = now_us + ADOPT_US
            if not b.job:
                live.unclear_us = now_us
            if b.phase is BlockPhase.DRAINING or b.cancelled:
                self._out.append(DrainBlock(b.id))
        self._forget()

    def mark(self, block: BlockRecord) -> str:
        return mark_of(self.endpoint, block.id)

    def records(self) -> tuple[list[BlockRecord], BlockHistory]:
        """Return everything that a new journal must contain."""
        return list(self.blocks.values()), self.history

    def take_effects(self, *, durable: bool = True) -> list[BlockEffect]:
        """Return what to do.

        `durable`: the records of all inputs so far are in the journal. If they are not,
        submissions are held back.
        """
        held: list[BlockEffect] = [] if durable else [e for e in self._out if isinstance(e, SubmitBlock)]
        out = [e for e in self._out if durable or not isinstance(e, SubmitBlock)]
        self._out = held
        for effect in out:
            if isinstance(effect, DrainBlock) and effect.block in self.live:
                self.live[effect.block].told = True
        return out

    # ------------------------------------------------------------ answers of the scheduler

    def on_submitted(self, mark: str, job: str, now_us: int) -> None:
        """The job of a block is in the scheduler's queue."""
        block = self._by_mark(mark)
        if block is None or block.phase is BlockPhase.ENDED or (block.job and block.job != job):
            if block is None or block.job != job:
                self._out.append(CancelJobs((job,)))  # it was given up, or is there twice
            return
        if block.job:
            return
        phase = BlockPhase.PENDING if block.phase is BlockPhase.ASKED else block.phase
        self._save(block, phase=phase, job=job, pending_us=now_us)
        self.live[block.id].unclear_us = 0
        self._poll_us = 0
        self._set_history(breaker.with_acceptance(self.history))

    def on_submit_failed(self, mark: str, why: str, *, transient: bool, unclear: bool, now_us: int) -> None:
        """The job was not accepted, or nobody knows (`unclear`)."""
        block = self._by_mark(mark)
        if block is None or block.phase is not BlockPhase.ASKED:
            return
        self._set_history(breaker.with_refusal(self.history, why, final=not transient, now_us=now_us))
        if unclear:
            live = self.live[block.id]
            live.unclear_us, live.search_us = now_us, now_us + SEARCH_US
        else:
            self._end(block, JobStatus(JobState.ENDED, reason=f"it was not submitted: {why}"), now_us)

    def on_searched(self, found: Mapping[str, str], missing: Sequence[str], now_us: int) -> None:
        """The scheduler was asked for the jobs with these marks."""
        for mark, job in found.items():
            self.on_submitted(mark, job, now_us)
        for mark in missing:
            block = self._by_mark(mark)
            live = self.live.get(block.id) if block is not None else None
            if block is None or live is None or block.job or not live.unclear_us or live.nodes:
                continue
            if now_us - live.unclear_us >= SETTLE_US:
                why = "its submission was not answered, and the scheduler has no job of its name"
                self._end(block, JobStatus(JobState.ENDED, reason=why), now_us)
                self._doubtful[mark] = now_us + DOUBT_US

    def on_jobs(self, jobs: Mapping[str, JobStatus], now_us: int) -> None:
        """The scheduler told the states of jobs; of those left out, the last state holds."""
        self._polling = False
        self._poll_us = now_us + self._poll_pause_us(now_us)
        for block in [self.blocks[i] for i in self.live]:
            status = jobs.get(block.job) if block.job else None
            if status is None:
                continue
            live = self.live[block.id]
            live.waits, live.position = f"{status.native or status.state.name} ({status.reason})", status.position
            if not status.reason:
                live.waits = status.native or status.state.name
            if status.state is JobState.ENDED:
                self._end(block, status, now_us)
            elif status.state is JobState.RUNNING:
                self._runs(block, now_us)
            elif block.running_us and not live.nodes:
                self._requeued(block, now_us)

    def _runs(self, block: BlockRecord, since_us: int) -> None:
        if not block.running_us:
            phase = block.phase if block.phase is BlockPhase.DRAINING else BlockPhase.RUNNING
            self._save(block, phase=phase, running_us=since_us)
        elif since_us < block.running_us - SECOND_US:  # the scheduler said so late
            self._save(block, running_us=since_us)

    def _requeued(self, block: BlockRecord, now_us: int) -> None:
        """Go back to PENDING: the scheduler lost a node, and queued the job again."""
        self._spend(block, now_us)
        phase = BlockPhase.PENDING if block.phase is BlockPhase.RUNNING else block.phase
        self._save(block, phase=phase, running_us=0, registered_us=0)

    # ------------------------------------------------------------ nodes

    def on_node_joined(self, block_id: str, node: str, now_us: int, age_s: float = 0.0, workers: int = 0) -> None:
        """A node of the block is connected and has a worker.

        It has run for `age_s`. `workers`: how many it has; further blocks are planned with as many.
        """
        block, live = self.blocks.get(block_id), self.live.get(block_id)
        if block is None or live is None:
            return
        live.nodes.add(node)
        if len(live.nodes) >= block.nodes:
            live.unheard_us = 0
        live.needed_us = now_us
        self._runs(block, max(block.asked_us, now_us - int(age_s * 1e6)))  # a clock may be wrong
        block = self.blocks[block_id]
        if not block.registered_us:
            self._save(block, registered_us=now_us, workers=workers or block.workers)
            self.limits = msgspec.structs.replace(self.limits, workers=workers or self.limits.workers)
        if not block.job and not live.unclear_us:
            live.unclear_us = now_us  # so its submission went through
        if block.cancelled or block.phase is BlockPhase.DRAINING:
            self._out.append(DrainBlock(block_id))

    def on_node_left(self, block_id: str, node: str, now_us: int) -> None:
        """A node of the block is gone or silent."""
        live = self.live.get(block_id)
        if live is not None:
            live.nodes.discard(node)
            self._poll_us = min(self._poll_us, now_us + POLL_SOON_US)

    # ------------------------------------------------------------ the user

    def reset(self) -> None:
        """Close the breaker and end all pauses."""
        self._set_history(breaker.with_reset(self.history))

    def stop(self, now_us: int, *, cancel: bool) -> None:
        """Ask for no more blocks. `cancel` their jobs, else drain them."""
        self.stopping = True
        for block in [self.blocks[i] for i in self.live]:
            if cancel or block.phase in WAITING:
                self._cancel(block, now_us)
            else:
                self._drain(block)

    # ------------------------------------------------------------ time

    def tick(self, now_us: int, demand: Demand, busy: Mapping[str, int], gangs: Mapping[str, int]) -> None:
        """Do what is due. By block, `busy`: workers with tasks, `gangs`: nodes of gangs."""
        for block_id, live in self.live.items():
            live.busy, live.gang_nodes = busy.get(block_id, 0), gangs.get(block_id, 0)
        self._note_need(now_us, demand)
        for block in [self.blocks[i] for i in self.live]:
            self._tick_block(block, self.live[block.id], now_us)
        if not self.stopping:
            self._scale(now_us, demand)
        self._search(now_us)
        self._poll(now_us)
        self._forget()

    def _note_need(self, now_us: int, demand: Demand) -> None:
        """Note which blocks are busy, and of those in the queue, which are needed."""
        running = [u for u in self.uses(now_us) if u.phase is BlockPhase.RUNNING]
        scarce = not covers(running, demand, self.limits)
        for block_id, live in self.live.items():
            queued = self.blocks[block_id].phase in WAITING
            if live.busy or (scarce and queued) or now_us < live.unheard_us:
                live.needed_us = now_us

    def _tick_block(self, block: BlockRecord, live: LiveBlock, now_us: int) -> None:
        if block.registered_us and not live.proven and now_us - block.registered_us >= QUICK_US:
            live.proven = True
            self._set_history(breaker.with_registration(self.history))
        remaining = self.remaining_s(block, now_us)
        if remaining is not None and remaining <= end_margin_s(block.walltime_s) and not live.handed_back:
            live.handed_back = True
            self._save(block, phase=BlockPhase.DRAINING, reason="its walltime ends")
            self._out.append(DrainBlock(block.id, hand_back=True))
        elif block.phase is BlockPhase.RUNNING and not block.registered_us and now_us - block.running_us > JOIN_US:
            why = f"no worker has registered within {JOIN_US // 60_000_000} min of its start"
            self._count_death(self._save(block, reason=why), why, now_us)
            self._cancel(self.blocks[block.id], now_us)
        elif block.phase is BlockPhase.RUNNING and self._is_alone(block, live, now_us):
            self._save(block, reason=f"none of its nodes was connected for {ALONE_US // 1_000_000} s")
            self._cancel(self.blocks[block.id], now_us)
        elif block.phase is BlockPhase.DRAINING and not block.cancelled and self._is_drained(live, now_us):
            if not live.released_us:
                live.released_us = now_us
                self._out.append(ReleaseBlock(block.id))
            elif now_us - live.released_us > RELEASE_US:
                self._cancel(block, now_us)
        block = self.blocks[block.id]
        if (
            block.cancelled
            and block.job
            and now_us >= live.cancel_us
            and (self.stopping or self._is_drained(live, now_us))
        ):
            live.cancel_us = now_us + CANCEL_AGAIN_US
            self._out.append(CancelJobs((block.job,)))

    def _is_alone(self, block: BlockRecord, live: LiveBlock, now_us: int) -> bool:
        """Return True if its nodes have been away for too long: its job is of no use."""
        if live.nodes or not block.registered_us or block.cancelled or now_us < live.unheard_us:
            live.alone_us = 0
        elif not live.alone_us:
            live.alone_us = now_us
        return bool(live.alone_us) and now_us - live.alone_us > ALONE_US

    def _is_drained(self, live: LiveBlock, now_us: int) -> bool:
        return live.told and not live.busy and now_us >= live.unheard_us

    def _scale(self, now_us: int, demand: Demand) -> None:
        limits = self.limits
        if self._initial:
            limits = msgspec.structs.replace(limits, min=max(limits.min, min(self._initial, limits.max)))
        self.plan = plan(demand, self.uses(now_us), limits, self.history, now_us)
        for block_id in self.plan.drain:
            block = self.blocks[block_id]
            if block.phase in WAITING:
                self._cancel(block, now_us)
            else:
                self._drain(block)
        for nodes in self.plan.ask:
            self._ask(nodes, now_us)
        self._initial = max(0, self._initial - len(self.plan.ask))

    def _ask(self, nodes: int, now_us: int) -> None:
        """Record a block, then ask for it."""
        new = self._new_block()
        block = BlockRecord(
            new.id, BlockPhase.ASKED, nodes, self.limits.workers, self.limits.walltime_s, new.public, now_us
        )
        self.blocks[block.id] = block
        self.live[block.id] = LiveBlock(set(), now_us)
        self._store.block(block)
        self._set_history(breaker.with_submission(self.history, now_us))
        self._out.append(SubmitBlock(block, self.mark(block), new.secret))

    def _search(self, now_us: int) -> None:
        marks = []
        for block_id, live in self.live.items():
            block = self.blocks[block_id]
            lost = bool(live.unclear_us) or (bool(live.nodes) and not block.job)
            if lost and not block.job and now_us >= live.search_us:
                live.search_us = now_us + SEARCH_US
                marks.append(self.mark(block))
        if self._doubtful and now_us >= self._doubt_us:
            self._doubt_us = now_us + 6 * SEARCH_US
            self._doubtful = {mark: until for mark, until in self._doubtful.items() if now_us < until}
            marks += self._doubtful
        if marks:
            self._out.append(FindBlocks(tuple(marks)))

    def _poll(self, now_us: int) -> None:
        jobs = tuple(b.job for b in (self.blocks[i] for i in self.live) if b.job)
        if jobs and not self._polling and now_us >= self._poll_us:
            self._polling = True
            self._out.append(PollJobs(jobs))

    def _poll_pause_us(self, now_us: int) -> int:
        soon = any(
            self.blocks[i].cancelled or live.released_us or now_us - self.blocks[i].asked_us < 60_000_000
            for i, live in self.live.items()
        )
        return POLL_SOON_US if soon else POLL_US

    # ------------------------------------------------------------ changes

    def _by_mark(self, mark: str) -> BlockRecord | None:
        block = self.blocks.get(mark.rsplit("-", 1)[-1])
        return block if block is not None and self.mark(block) == mark else None

    def _save(self, block: BlockRecord, **changes: object) -> BlockRecord:
        block = self.blocks[block.id] = msgspec.structs.replace(self.blocks[block.id], **changes)
        self._store.block(block)
        return block

    def _set_history(self, history: BlockHistory) -> None:
        if history is not self.history:
            self.history = history
            self._store.block_history(history)

    def _drain(self, block: BlockRecord) -> None:
        self._save(block, phase=BlockPhase.DRAINING)
        self._out.append(DrainBlock(block.id))

    def _cancel(self, block: BlockRecord, now_us: int) -> None:
        """Cancel a block's job, as soon as its id is known."""
        if not block.cancelled:
            self._save(block, cancelled=True)
            self._out.append(DrainBlock(block.id))  # a node of it that joins now gets no task
            self.live[block.id].cancel_us = now_us
            self._poll_us = min(self._poll_us, now_us + POLL_SOON_US)

    def _end(self, block: BlockRecord, status: JobStatus, now_us: int) -> None:
        """Latch the end of a block."""
        self._spend(block, now_us)
        ending = status.ending.value if status.ending is not None else ""
        stderr = status.stderr_tail[-STDERR_CHARS:]
        reason = status.reason or block.reason
        is_death = bool(block.job) and self._is_death(self.blocks[block.id], status, now_us)
        block = self._save(
            block, phase=BlockPhase.ENDED, ended_us=now_us, reason=reason, ending=ending, exit=status.exit,
            stderr=stderr,
        )  # fmt: skip
        if is_death:
            self._count_death(block, end_words(block), now_us)
        del self.live[block.id]
        self._out.append(EndBlock(block.id, end_words(block)))

    def _is_death(self, block: BlockRecord, status: JobStatus, now_us: int) -> bool:
        if block.counted:
            return False
        if block.cancelled:  # a job that was cancelled ends by a signal
            return status.ending is JobEnding.FAILED and 0 < (status.exit or 0) < 128 and not block.registered_us
        if not block.registered_us:
            return True
        return (
            status.ending not in OUTSIDE
            and now_us - block.running_us < QUICK_US
            and not (block.phase is BlockPhase.DRAINING or block.reason == "its walltime ends")
        )

    def _count_death(self, block: BlockRecord, words: str, now_us: int) -> None:
        self._save(block, counted=True)
        self._set_history(breaker.with_death(self.history, block.pending_us or block.asked_us, words, now_us))

    def _spend(self, block: BlockRecord, now_us: int) -> None:
        """Count the node-hours of a block that ran until now."""
        if block.running_us:
            ran_s = min(max(0.0, (now_us - block.running_us) / 1e6), block.walltime_s + 60)
            self._set_history(with_use(self.history, block.nodes * ran_s, self.limits, now_us))

    def _forget(self) -> None:
        """Forget all ended blocks but the newest."""
        ended = [i for i, b in self.blocks.items() if i not in self.live and self.mark(b) not in self._doubtful]
        for block_id in ended[: max(0, len(ended) - KEPT_ENDED)]:
            del self.blocks[block_id]

    # ------------------------------------------------------------ facts

    def remaining_s(self, block: BlockRecord, now_us: int) -> float | None:
        """Return what is left of the block's walltime; None if nothing limits it yet."""
        if not block.running_us or not block.walltime_s:
            return None
        return block.walltime_s - (now_us - block.running_us) / 1e6

    def ends_us(self) -> dict[str, int]:
        """Return when the blocks that run take no more tasks."""
        running = [b for b in (self.blocks[i] for i in self.live) if b.running_us and b.walltime_s]
        return {b.id: b.running_us + int((b.walltime_s - end_margin_s(b.walltime_s)) * 1e6) for b in running}

    def uses(self, now_us: int) -> list[BlockUse]:
        """Return the blocks as scaling sees them."""
        blocks = [(self.blocks[i], live) for i, live in self.live.items()]
        return [use_of(b, live, self.remaining_s(b, now_us), now_us) for b, live in blocks]
