"""Workers of an agent in batch jobs: table of blocks, scheduler, nodes' pools.

loop ──check──► BlockTable ──effects──► JobThread ──► scheduler
                    ▲  └────────────► PoolSet (nodes): drain, hand back, dismiss
                    └── answers, nodes that join and leave
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from oncue import curve
from oncue.clocks.process import now_us
from oncue.endpoint.agent.agent import Agent
from oncue.endpoint.agent.journal import BLOCK, BLOCK_HISTORY, Journal, pack
from oncue.endpoint.blocks import status as block_status
from oncue.endpoint.blocks.limits import node_resources, scaling_limits, stated_resources
from oncue.endpoint.blocks.live_block import NewBlock
from oncue.endpoint.blocks.records import (
    BlockEffect,
    BlockRecord,
    BlocksUsage,
    CancelJobs,
    DrainBlock,
    EndBlock,
    FindBlocks,
    PollJobs,
    ReleaseBlock,
    SubmitBlock,
)
from oncue.endpoint.blocks.scaling import Demand, ScalingLimits
from oncue.endpoint.blocks.table import BlockTable
from oncue.endpoint.blocks.task_sizes import TaskSizes
from oncue.endpoint.blocks.task_walltimes import TaskWalltimes
from oncue.endpoint.control_files import KEEP_BLOCKS, RESET_BLOCKS
from oncue.endpoint.loop import AgentLoop
from oncue.endpoint.nodes.launch import NodeLaunch, open_nodes, pinning_arguments
from oncue.endpoint.nodes.node_folder import cleanup_command
from oncue.endpoint.nodes.pool_set import PoolSet
from oncue.endpoint.options.apply import pinning, python_on_nodes
from oncue.endpoint.options.options import EndpointOptions, WorkerOptions
from oncue.endpoint.options.providers import kind_of
from oncue.endpoint.pool.granted_cores import NODE_CORES
from oncue.endpoint.providers.job_catalog import job_provider
from oncue.endpoint.providers.job_events import (
    JobEvent,
    JobsCancelled,
    JobsPolled,
    MarksSearched,
    SubmitFailed,
    Submitted,
)
from oncue.endpoint.providers.job_thread import JobThread
from oncue.endpoint.providers.jobs import JobRequest
from oncue.endpoint.settings import EndpointSettings
from oncue.protocol.codec import encode
from oncue.protocol.records import Call

log = logging.getLogger("oncue.agent")
TICK_US, SOON_US = 1_000_000, 100_000
NOTE_US = 200  # for each node, between two looks at all of them: a thousand may join in a second
HAND_BACK_S = 5.0  # for nodes to end and hand back running tasks, when the agent stops
STOP_S = 60.0  # for the scheduler to confirm that all jobs have ended
UNWELCOME = "no server has welcomed this agent yet; until then blocks stay as they are"
CLOSE_S = 5.0  # for the scheduler's command that is under way


class BlockWorkers:
    """Blocks of one endpoint and the pools of their nodes.

    `environment` is exported by the jobs' scripts. `kind`: of the scheduler, for people.
    `per_node`: workers of each node; 0: the node counts what it has.
    """

    def __init__(
        self,
        folder: Path,
        endpoint: str,
        agent: Agent,
        journal: Journal,
        limits: ScalingLimits,
        jobs: JobThread,
        pools: PoolSet,
        launch: NodeLaunch,
        environment: dict[str, str],
        kind: str,
        per_node: int,
        sizes: TaskSizes,
    ) -> None:
        self._folder, self._agent, self._journal, self._kind = folder, agent, journal, kind
        self._jobs, self.pool, self._launch, self._environment = jobs, pools, launch, environment
        self._per_node, self._sizes = per_node, sizes
        self.journalled = pools.acknowledge
        found = journal.recovered
        self.table = BlockTable(
            endpoint, limits, journal, found.blocks.values(), found.block_history, now_us(), new_block
        )
        agent.other_records = self._records
        self._walltimes = TaskWalltimes(limits.walltime_s, pools.durations, agent.functions.options)
        pools.need_us, pools.size_of = self._walltimes.need_us, sizes.of
        pools.block_misfit = lambda needed: self._walltimes.misfit(needed) or sizes.misfit(needed)
        agent.admission, agent.shares.share_of = self._admits, sizes.share
        agent.alone = lambda call: bool(sizes.of(call.function, call.run)[0])
        self._unclaimed_gangs = self._find_unclaimed_gangs()
        for block in self.table.blocks.values():
            if block.id in self.table.live:
                self._allow(block)
        agent.nodes.keep_only(self.table.live.keys())
        if self.table.live:
            log.info("adopted %d blocks of before", len(self.table.live))
        self._ready = True  # the job thread may have events
        self._due_us = self._note_us = 0
        self._nodes_changed = False
        self._demanded = self._finishing = False
        self._told = ("", "")

    @property
    def fd(self) -> int:
        """Descriptor that is readable when the job thread has events."""
        return self._jobs.fd

    @property
    def trouble(self) -> str:
        """Reason why no worker can be had; empty if there is none."""
        return block_status.breaker_words(self.table) or self._jobs.trouble() or self.pool.trouble

    def on_readable(self) -> None:
        """Note that the job thread has events."""
        self._ready = True

    def _records(self) -> list[bytes]:
        blocks, history = self.table.records()
        return [*(pack(BLOCK, encode(b)) for b in blocks), pack(BLOCK_HISTORY, encode(history))]

    # ------------------------------------------------------------ turns

    def due_us(self) -> int:
        """Return when `check` is due at the latest, unix µs."""
        return min(self._due_us, self._note_us) if self._nodes_changed else self._due_us

    def check(self, at: int) -> None:
        """Take the scheduler's answers and the nodes' changes; tick when it is due."""
        if self._ready:
            self._ready = False
            for event in self._jobs.drain():
                self._apply(event, at)
                self._due_us = min(self._due_us, at)
        self._nodes_changed = bool(self.pool.changes()) or self._nodes_changed
        if self._nodes_changed and at >= self._note_us:
            self._note_nodes(at)
            self._due_us = min(self._due_us, at)
        demanded = bool(self._agent.queue.held)
        if demanded and not self._demanded:  # the first task does not wait for the next tick
            self._due_us = min(self._due_us, at)
        self._demanded = demanded
        if at >= self._due_us:
            self._due_us = at + TICK_US
            self._tick(at)

    def _tick(self, at: int) -> None:
        agent, busy, gangs = self._agent, Counter[str](), Counter[str]()
        self.pool.set_ends(self.table.ends_us())
        if not (agent.session.welcomed or self._finishing):
            # The blocks may be another agent's. Without ticks, effects reach our own nodes only.
            return self._act()
        for node in self.pool.nodes():
            busy[node.block] += max(node.held, node.taken)
            gangs[node.block] += node.in_gang
        self.table.tick(at, self._demand(), busy, gangs)
        self._act()
        if not self.table.live and not agent.nodes.complete:
            agent.lose_unclaimed("no block that could run it is left")

    def _demand(self) -> Demand:
        """Return the room and the nodes that tasks take, and those that they wait for."""
        agent, nodes = self._agent, self.pool.nodes()
        self._walltimes.renew()
        at_workers = sum(min(node.held, node.workers) for node in nodes)
        running = sum(min(max(node.held, node.taken), node.workers) for node in nodes)
        if agent.draining:
            return Demand(0, running)
        calls = agent.queue.waiting_by_call
        self.pool.want_gangs([key for key in calls if self._sizes.of(*key)[0]])
        beyond, gangs = self._sizes.demand(calls)
        waiting = max(0, len(agent.queue.held) - at_workers + beyond)
        needs = [self._walltimes.need_us(call.function, call.run) for call in agent.queue.next_calls()]
        return Demand(waiting, running, gangs, max(needs, default=0) / 1e6)

    def _admits(self, call: Call) -> bool:
        """Return True if a task of this call has room now, for as long as it needs."""
        if self._unclaimed_gangs:  # which nodes those have is not known yet
            self._unclaimed_gangs.intersection_update(i for i, _ in self._agent.unclaimed())
            if self._unclaimed_gangs:
                return False
        return self.pool.may_start(call.function, call.run)

    def _find_unclaimed_gangs(self) -> set[bytes]:
        """Return the tasks over several nodes that run since before the agent's restart."""
        found = set[bytes]()
        for task_id, call in self._agent.unclaimed():
            self._agent.functions.get(call.function)  # reads from the disk what it states
            if self._sizes.of(call.function, call.run)[0]:
                found.add(task_id)
        return found

    def _act(self) -> None:
        for effect in self.table.take_effects(durable=self._journal.write()):
            self._execute(effect)

    def _apply(self, event: JobEvent, at: int) -> None:
        table = self.table
        match event:
            case Submitted():
                table.on_submitted(event.mark, event.job, at)
                block = table.blocks.get(event.mark.rsplit("-", 1)[-1])
                if block is not None and block.id in table.live:
                    self._allow(block)
                    log.info("block %s: job %s was submitted, %d nodes", block.id, block.job, block.nodes)
            case SubmitFailed():
                log.warning("a block could not be submitted: %s", event.why)
                table.on_submit_failed(
                    event.mark, event.why, transient=event.transient, unclear=event.unclear, now_us=at
                )
            case MarksSearched():
                table.on_searched(event.found, event.missing, at)
            case JobsPolled():
                table.on_jobs(event.jobs, at)
            case JobsCancelled():
                pass

    def _note_nodes(self, at: int) -> None:
        """Tell the table which nodes have joined or left."""
        here: dict[str, set[str]] = {}
        nodes, self._nodes_changed = self.pool.nodes(), False
        self._note_us = at + SOON_US + NOTE_US * len(nodes)
        for node in nodes:
            name = f"{node.host}:{node.pid}"
            here.setdefault(node.block, set()).add(name)
            live = self.table.live.get(node.block)
            if live is not None and node.ready and name not in live.nodes:
                age_s = max(0, at - node.began_us) / 1e6 if node.began_us else 0.0
                self.table.on_node_joined(node.block, name, at, age_s, node.workers)
                log.info("block %s: node %s joined, %d workers", node.block, node.host, node.workers)
        for block_id, live in self.table.live.items():
            for name in live.nodes - here.get(block_id, set()):
                self.table.on_node_left(block_id, name, at)

    def _execute(self, effect: BlockEffect) -> None:
        match effect:
            case SubmitBlock(block, mark, secret):
                self._allow(block)
                self._jobs.submit(
                    JobRequest(
                        mark,
                        self._launch.command(block.id, self._per_node),
                        block.nodes,
                        int(block.walltime_s),
                        self._environment | self._launch.environment(secret.encode()),
                        cleanup=cleanup_command(block.id),
                    )
                )
            case FindBlocks(marks):
                self._jobs.find(marks)
            case PollJobs(ids):
                self._jobs.poll(ids)
            case CancelJobs(ids):
                self._jobs.cancel(ids)
            case DrainBlock(block_id, hand_back):
                if hand_back:
                    self.pool.hand_back(block_id, self._walltimes.hand_back(self.pool.held_by(block_id)))
                else:
                    self.pool.drain_block(block_id)
            case ReleaseBlock(block_id):
                self.pool.dismiss(block_id)
            case EndBlock(block_id, why):
                log.info("block %s has ended: %s", block_id, why)
                self.pool.end_block(block_id, why)

    def _allow(self, block: BlockRecord) -> None:
        if block.key:
            self.pool.allow(block.id, block.key.encode(), f"job {block.job}" if block.job else "")

    # ------------------------------------------------------------ for people

    def report(self) -> None:
        """Obey `oncue endpoint reset`; log why no blocks are asked for any more."""
        file = self._folder / RESET_BLOCKS
        if file.exists():
            file.unlink(missing_ok=True)
            log.info("reset: blocks are asked for again")
            self.table.reset()
            self._jobs.retry_now()
            self._due_us = 0
        told = (block_status.breaker_words(self.table), self._jobs.trouble())
        for words, before in zip(told, self._told, strict=True):
            if bool(words) != bool(before) and words:
                log.error("%s", words)
        self._told = told

    def usage(self) -> BlocksUsage:
        """Return what the server is told."""
        waiting = bool(self._agent.queue.held)
        return block_status.usage(self.table, self._kind, self.pool.nodes(), waiting, self.trouble, now_us())

    def facts(self) -> dict[str, Any]:
        """Return the entries of status.json about blocks."""
        table = self.table
        return {
            "blocks": block_status.block_rows(table),
            "scaling": table.plan.why if self._agent.session.welcomed else UNWELCOME,
            "waiting": block_status.waiting_words(table) if self._agent.queue.held else "",
            "breaker": block_status.breaker_words(table),
            "scheduler": self._jobs.trouble(),
            "node_hours": round(block_status.node_hours(table, now_us()), 2),
        }

    # ------------------------------------------------------------ the end

    def finish(self, loop: AgentLoop, grace_s: float) -> None:
        """End all jobs, or with the file `keep-blocks`, leave them to the next agent.

        Running tasks get `grace_s`; then they are handed back, and run after the next start.
        """
        keep = self._folder / KEEP_BLOCKS
        if keep.exists():
            keep.unlink(missing_ok=True)
            log.info("%d blocks are kept for the next agent", len(self.table.live))
            return
        self._finishing = True
        blocks = list(self.table.live)
        for block in blocks:
            self.pool.drain_block(block)
        self._turn_until(loop, grace_s, lambda: not self.pool.busy)
        for block in blocks:
            self.pool.hand_back(block)
        self._turn_until(loop, HAND_BACK_S, lambda: not any(self.pool.held_by(b) for b in blocks))
        for block in blocks:
            self.pool.dismiss(block)
        self.table.stop(now_us(), cancel=True)
        self._due_us = 0
        self._turn_until(loop, STOP_S, lambda: not self.table.live)
        for left in [self.table.blocks[i] for i in self.table.live]:
            unseen = f"the answer to its submission was lost, and no job {self.table.mark(left)} has appeared so far"
            log.error(
                "block %s: job %s could not be ended: %s; end it by hand, or start the endpoint: it cancels the job",
                left.id, left.job or "(unknown)",
                self._jobs.trouble() or ("the scheduler still lists it" if left.job else unseen),
            )  # fmt: skip

    def _turn_until(self, loop: AgentLoop, limit_s: float, reached: Any) -> None:
        deadline = time.monotonic() + limit_s
        while not reached() and time.monotonic() < deadline:
            loop.turn(min(self._due_us, now_us() + SOON_US), self.check)

    def close(self) -> None:
        self.pool.close(0.0)
        if not self._jobs.close(CLOSE_S):
            log.warning("a command of the scheduler is still under way")


def new_block() -> NewBlock:
    """Return the name and keys of a new block."""
    keys = curve.make_keys()
    return NewBlock(os.urandom(4).hex(), keys.public.decode(), keys.secret.decode())


def open_blocks(
    folder: Path, settings: EndpointSettings, options: EndpointOptions, agent: Agent, journal: Journal
) -> BlockWorkers:
    """Open the endpoint's blocks: adopt those that run, and listen for nodes.

    Raises OncueError (the options, a library that is missing), OSError (the folder).
    """
    limits, kind = scaling_limits(options), kind_of(options.provider)
    provider = job_provider(options.provider, folder)
    pools, launch = open_nodes(folder, agent, options.network)
    arguments = (*node_arguments(settings, options.workers), f"--mpi={options.mpi_launcher}")
    launch = msgspec.structs.replace(launch, python=python_on_nodes(options), arguments=arguments)
    environment = {name: str(value) for name, value in options.environment.items()}
    if stated := stated_resources(options).cores:
        environment[NODE_CORES] = str(stated)
    jobs, per_node = JobThread(provider), options.workers.per_node or 0
    sizes = TaskSizes(limits, node_resources(options), stated_resources(options), agent.functions.options)
    return BlockWorkers(
        folder, settings.id, agent, journal, limits, jobs, pools, launch, environment, kind, per_node, sizes
    )


def node_arguments(settings: EndpointSettings, workers: WorkerOptions) -> tuple[str, ...]:
    """Return the arguments that count, limit and pin the workers of each node."""
    limits = settings.limits()
    words = [f"--pass-env={glob}" for glob in settings.pass_env]
    for name, value in (
        ("--worker-cores", workers.cores), ("--worker-memory-bytes", workers.memory), ("--worker-gpus", workers.gpus),
        ("--threads", limits.threads), ("--max-tasks", limits.max_tasks), ("--max-memory-bytes", limits.max_memory_bytes),
    ):  # fmt: skip
        words += [name, str(value)] if value else []
    return (*words, *pinning_arguments(pinning(workers)), "--grace-s", f"{settings.grace_s:g}")
