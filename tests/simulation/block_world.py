"""One seed of an endpoint with blocks: the real table and journal, a simulated scheduler and its nodes.

Tasks are durations here. A task that is at a node when the node ends is lost; the world counts it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import msgspec

from oncue.endpoint.agent.journal import BLOCK, BLOCK_HISTORY, Journal, pack
from oncue.endpoint.blocks.breaker import DEATHS, WINDOW_US
from oncue.endpoint.blocks.records import (
    BlockEffect,
    BlockPhase,
    CancelJobs,
    DrainBlock,
    EndBlock,
    FindBlocks,
    PollJobs,
    ReleaseBlock,
    SubmitBlock,
)
from oncue.endpoint.blocks.scaling import Demand, ScalingLimits
from oncue.endpoint.blocks.table import BlockTable, NewBlock
from oncue.endpoint.providers.jobs import JobEnding, JobState
from oncue.protocol.codec import encode
from tests.simulation.clock import Clock
from tests.simulation.scheduler import SECOND, SimJob, SimScheduler, SubmitError
from tests.simulation.site import MemoryFile

TICK_US = SECOND
FAULTY_US, LIMIT_US = 900 * SECOND, 6 * 3_600 * SECOND
DIAL_US = 10 * SECOND
HAND_BACK_US = 2 * SECOND


class SimTask(msgspec.Struct, eq=False):
    n: int
    duration_us: int
    walltime_s: float = 0.0  # as far as the agent knows
    runs: int = 0
    done: int = 0
    lost: int = 0


class SimNode(msgspec.Struct, eq=False):
    """A pool on one node of a job. It goes on without the agent, and dials it again."""

    name: str
    job: SimJob
    block: str
    workers: int
    tasks: list[SimTask] = []
    connected: bool = False
    alive: bool = True


class BlockWorld:
    """An agent with blocks. `table_class` may be a mutant."""

    def __init__(
        self,
        seed: int = 0,
        limits: ScalingLimits | None = None,
        table_class: type[BlockTable] = BlockTable,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        self.rng = random.Random(seed)
        self.clock = Clock()
        self.clock.trace = trace
        self.limits = limits or ScalingLimits(max=6, nodes=2, workers=2, walltime_s=600.0, idle_s=60.0, pending=3)
        self._class = table_class
        self.scheduler = SimScheduler(self.clock, self.rng, self._on_state)
        self.file = MemoryFile()
        self.journal: Journal
        self.table: BlockTable | None = None
        self.life = self.up_us = 0  # of the agent's process
        self.killed_at_submit = False  # the agent is killed when it next submits, before the answer
        self.nodes: list[SimNode] = []
        self.waiting: list[SimTask] = []
        self.tasks: list[SimTask] = []
        self.draining: set[str] = set()  # blocks whose nodes get no task; the agent's memory
        self.cancels = 0  # tasks that a cancelled job took with it
        self.user_stop = False
        self._names = itertools.count()

    # ------------------------------------------------------------ the agent's process

    def boot(self) -> BlockTable:
        """Start the agent from its journal."""
        if self.table is not None:
            return self.table
        self.life += 1
        self.up_us = self.clock.now_us
        self.clock.note("the agent boots")
        self.journal = Journal(self.file, b"journal1")
        found = self.journal.recovered
        self.draining = set()
        self.table = self._class(
            "ep000001", self.limits, self.journal, found.blocks.values(), found.block_history,
            self.clock.now_us, self._new_block,
        )  # fmt: skip
        life = self.life
        for node in self.nodes:
            self._dial(node)
        self._turn(life)
        return self.table

    def crash(self) -> None:
        """kill -9 of the agent: its memory, and the answers under way, are gone; jobs and nodes stay."""
        if self.table is not None:
            self.clock.note("the agent is killed")
            self.table = None
            for node in self.nodes:
                node.connected = False

    def _new_block(self) -> NewBlock:
        name = f"{self.rng.getrandbits(32):08x}"
        return NewBlock(name, "public", "secret")

    def _turn(self, life: int) -> None:
        """Tick each second, as the loop does."""
        if self.life == life and self.table is not None:
            self.tick()
            self.clock.after(TICK_US, lambda: self._turn(life))

    def tick(self) -> None:
        table = self.table
        assert table is not None
        busy: dict[str, int] = {}
        for node in self.nodes:
            if node.connected:
                busy[node.block] = busy.get(node.block, 0) + len(node.tasks)
        running = sum(len(n.tasks) for n in self.nodes if n.connected)
        longest = max((t.walltime_s for t in self.waiting), default=0.0)
        table.tick(self.clock.now_us, Demand(len(self.waiting), running, walltime_s=longest), busy, {})
        self.act()
        self._hand_out()

    def act(self) -> None:
        """Write the journal, then do what the table asks for."""
        table = self.table
        if table is None:
            return
        for effect in table.take_effects(durable=self.journal.write()):
            self._execute(effect)

    def rewrite(self) -> None:
        """Write the journal anew, as the agent does when most of it is dead."""
        if self.table is not None:
            blocks, history = self.table.records()
            packed = [pack(BLOCK, encode(b)) for b in blocks]
            self.journal.rewrite([*packed, pack(BLOCK_HISTORY, encode(history))])

    def _execute(self, effect: BlockEffect) -> None:
        match effect:
            case SubmitBlock(block, mark, _):
                self._call(lambda: self._submit(mark, block.nodes, block.walltime_s))
            case FindBlocks(marks):
                self._retried(lambda: self._find(marks))
            case PollJobs(jobs):
                self._retried(lambda: self._poll(jobs))
            case CancelJobs(jobs):
                self._retried(lambda: self._cancel(jobs))
            case DrainBlock(block_id, hand_back):
                self.draining.add(block_id)
                if hand_back:
                    self.clock.after(HAND_BACK_US, lambda: self._hand_back(block_id))
            case ReleaseBlock(block_id):
                for node in [n for n in self.nodes if n.block == block_id]:
                    assert not node.tasks, "a node is released that runs a task"
                    self._leave(node)
            case EndBlock(block_id, _):
                assert all(n.job.state is JobState.ENDED for n in self.nodes if n.block == block_id), (
                    "a block counts as ended, and its job runs"
                )

    # ------------------------------------------------------------ calls of the job thread

    def _call(self, call: Callable[[], Callable[[BlockTable, int], None]]) -> None:
        """Make a call after a while; give its answer to the process that made it."""
        life = self.life

        def answer(answered: Callable[[BlockTable, int], None]) -> None:
            if self.life == life and self.table is not None:
                answered(self.table, self.clock.now_us)
                self.act()

        def make() -> None:
            if self.life == life and self.table is not None:
                answered = call()
                self.clock.after(self.rng.randrange(2 * SECOND), lambda: answer(answered))

        self.clock.after(self.rng.randrange(SECOND), make)

    def _retried(self, call: Callable[[], Callable[[BlockTable, int], None]]) -> None:
        """Make a call, again until the scheduler answers."""
        life = self.life
        if self.scheduler.away:
            self.clock.after(10 * SECOND, lambda: self._retried(call) if self.life == life else None)
        else:
            self._call(call)

    def _submit(self, mark: str, nodes: int, walltime_s: float) -> Callable[[BlockTable, int], None]:
        try:
            job = self.scheduler.submit(mark, nodes, walltime_s)
            if self.killed_at_submit:
                self.killed_at_submit = False
                self.crash()
                self.clock.after(30 * SECOND, self.boot)
        except SubmitError as e:
            error = e
            return lambda table, now: table.on_submit_failed(
                mark, error.why, transient=error.transient, unclear=error.unclear, now_us=now
            )
        return lambda table, now: table.on_submitted(mark, job, now)

    def _find(self, marks: tuple[str, ...]) -> Callable[[BlockTable, int], None]:
        found = self.scheduler.find(marks)
        return lambda table, now: table.on_searched(found, [m for m in marks if m not in found], now)

    def _poll(self, jobs: tuple[str, ...]) -> Callable[[BlockTable, int], None]:
        states = self.scheduler.jobs(jobs)
        return lambda table, now: table.on_jobs(states, now)

    def _cancel(self, jobs: tuple[str, ...]) -> Callable[[BlockTable, int], None]:
        before = sum(t.lost for t in self.tasks)
        self.scheduler.cancel(jobs)
        self.cancels += sum(t.lost for t in self.tasks) - before
        assert self.user_stop or not self.cancels, "scale-in ended a running task"
        return lambda table, now: None

    # ------------------------------------------------------------ nodes

    def _on_state(self, job: SimJob) -> None:
        if job.state is JobState.RUNNING and not job.dies:
            block = job.mark.rsplit("-", 1)[-1]
            for _ in range(job.nodes):
                node = SimNode(f"n{next(self._names)}", job, block, self.limits.workers)
                self.nodes.append(node)
                self._dial(node)
        elif job.state is JobState.ENDED:
            for node in [n for n in self.nodes if n.job is job]:
                self._fail(node)

    def _dial(self, node: SimNode) -> None:
        life = self.life

        def join() -> None:
            if self.life == life and self.table is not None and node.alive and not node.connected:
                node.connected = True
                block = self.table.blocks.get(node.block)
                assert block is not None, "a job runs that no record knows"
                assert block.phase is not BlockPhase.ENDED, "a job runs whose block has ended"
                age_s = (self.clock.now_us - node.job.started_us) / SECOND
                self.table.on_node_joined(node.block, node.name, self.clock.now_us, age_s)
                self.act()
                self._hand_out()

        self.clock.after(self.rng.randrange(100_000, DIAL_US), join)

    def _fail(self, node: SimNode) -> None:
        """End a node with its job: what runs there is lost, and tried again."""
        node.alive = node.connected = False
        self.nodes.remove(node)
        watched = self.table is not None and self.clock.now_us - self.up_us > 60 * SECOND
        assert not (watched and node.tasks and node.job.ending is JobEnding.WALLTIME), "a task ran into the walltime"
        for task in node.tasks:
            task.lost += 1
            self.waiting.append(task)
        node.tasks = []
        self._left(node)

    def _leave(self, node: SimNode) -> None:
        """Let a released node exit. The job is over with its last node."""
        node.alive = node.connected = False
        self.nodes.remove(node)
        self._left(node)
        if not [n for n in self.nodes if n.job is node.job]:
            self.scheduler.end(node.job, JobEnding.COMPLETED, 0)

    def _left(self, node: SimNode) -> None:
        if self.table is not None:
            self.table.on_node_left(node.block, node.name, self.clock.now_us)

    def _hand_back(self, block_id: str) -> None:
        for node in [n for n in self.nodes if n.block == block_id]:
            self.waiting += node.tasks
            node.tasks = []

    def _hand_out(self) -> None:
        table = self.table
        assert table is not None
        for node in self.nodes:
            block = table.blocks.get(node.block)
            if not node.connected or node.block in self.draining or block is None:
                continue
            remaining = table.remaining_s(block, self.clock.now_us)
            while len(node.tasks) < node.workers:
                fits = [t for t in self.waiting if remaining is None or t.walltime_s < remaining]
                if not fits:
                    break
                self.waiting.remove(fits[0])
                self._run(node, fits[0])

    def _run(self, node: SimNode, task: SimTask) -> None:
        node.tasks.append(task)
        task.runs += 1
        run = task.runs

        def end() -> None:
            if task in node.tasks and task.runs == run:
                node.tasks.remove(task)
                task.done += 1

        self.clock.after(task.duration_us, end)

    # ------------------------------------------------------------ the user

    def add(self, count: int, duration_s: float, walltime_s: float = 0.0) -> None:
        new = [SimTask(len(self.tasks) + i, int(duration_s * SECOND), walltime_s) for i in range(count)]
        self.tasks += new
        self.waiting += new

    def run_for(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Let time pass, at most until the condition holds."""
        end = self.clock.now_us + int(seconds * SECOND)
        self.clock.at(end, lambda: None)
        while not until() and self.clock.step() and self.clock.now_us < end:
            pass

    # ------------------------------------------------------------ one seed

    def run(self) -> None:
        """Run a scenario with faults, then a fair end. Raises AssertionError."""
        rng, sched = self.rng, self.scheduler
        sched.queue_s = rng.choice(((1.0, 30.0), (1.0, 300.0)))
        self.limits = msgspec.structs.replace(self.limits, idle_s=rng.choice((1.0, 60.0)))
        self.boot()
        for _ in range(rng.randrange(1, 5)):
            count, duration = rng.randrange(1, 30), rng.choice((0.1, 5.0, 60.0, 200.0))
            walltime = duration if rng.random() < 0.5 else 0.0
            self.clock.after(rng.randrange(FAULTY_US // 2), lambda c=count, d=duration, w=walltime: self.add(c, d, w))
        for _ in range(rng.randrange(0, 6)):
            self.clock.after(rng.randrange(FAULTY_US), self._fault)
        self.run_for(FAULTY_US / SECOND)
        sched.away, sched.refuses, sched.lost_answers, sched.dying = False, "", 0.0, 0.0
        self.boot()
        self.run_for(LIMIT_US / SECOND, until=lambda: all(t.done for t in self.tasks))
        self.run_for(1_000, until=lambda: not sched.live())
        self.check()

    def _fault(self) -> None:
        rng, sched = self.rng, self.scheduler
        kind = rng.randrange(9)
        pause = rng.choice((1, 30, 200)) * SECOND
        if kind == 0:
            self.crash()
            self.clock.after(pause, self.boot)
        elif kind == 1:
            sched.away = True
            self.clock.after(pause, lambda: setattr(sched, "away", False))
        elif kind == 2:
            sched.lost_answers, sched.swallowed = 0.7, rng.choice((0.0, 0.5))
        elif kind == 3:
            sched.dying = rng.choice((0.5, 1.0))
        elif kind == 4 and sched.live():
            sched.end(rng.choice(sched.live()), rng.choice((JobEnding.CANCELLED, JobEnding.NODE)), None)
        elif kind == 5:
            sched.refuses = "sbatch: error: invalid account"
            self.clock.after(pause, lambda: setattr(sched, "refuses", ""))
        elif kind == 6:
            self.file.room = rng.randrange(100)
            self.clock.after(pause, lambda: setattr(self.file, "room", None))
        elif kind == 7:
            self.killed_at_submit = True
        else:
            self.rewrite()

    def check(self) -> None:
        assert all(t.done == 1 for t in self.tasks), f"{[t for t in self.tasks if t.done != 1][:3]}"
        assert not self.scheduler.live(), f"jobs are left: {self.scheduler.live()}"
        self.check_jobs()

    def check_jobs(self) -> None:
        """No job was doubled, none was too many, and what dies was not submitted again and again."""
        jobs = list(self.scheduler.all.values())
        marks = [j.mark for j in jobs]
        assert len(set(marks)) == len(marks), "a block was submitted twice"
        dead = sorted(j.submitted_us for j in jobs if j.dies and j.ending is JobEnding.FAILED)
        for at in dead:
            within = [d for d in dead if at <= d < at + WINDOW_US]
            assert len(within) <= DEATHS, f"{len(within)} jobs that died were submitted within ten minutes"
