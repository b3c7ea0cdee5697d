"""Engine: matches events of `oncue.events` against rules and makes tasks.

    oncue.events ─batches─► decode ─► index ─► decide ─► arguments ─► TaskFrames (endpoint, action)
    oncue.results ─outcomes──┘│                  │           │
                              │   stateful rules └─► Match ─► oncue.matches (embedded_runner.py)
                              └── oncue.dead (reason) ◄──────┘
    All results of a step are committed in one transaction: commit("rules", batches, appends).

After a crash before the commit the batches are delivered again and make the same tasks: ids follow
from rule and event. A bad event or rule gives a dead letter and does not affect others.

Rules whose cost for an event has no small bound are evaluated in a process of their own, one after
the other and in order (evaluation/judge.py). Those over their budget are paused. Events that a
paused rule did not test are named in dead letters, and are tested when these are retried.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from time import perf_counter

from oncue.errors import NotFound, NotOwner
from oncue.log.base import Log, RecordBatch
from oncue.protocol.api import Explanation, RuleInfo
from oncue.protocol.records import Deployment, Event, RuleSwitch
from oncue.protocol.topics import EVENTS, RESULTS
from oncue.rules.active_rules import ActiveRule, ActiveRules, RuleCompiler
from oncue.rules.batch_result import BatchResult, Postponed, decoded_apart
from oncue.rules.evaluation.evaluator import Evaluator
from oncue.rules.evaluation.explaining import explain_apart
from oncue.rules.evaluation.judge import NotTested, Pause, RuleJudge
from oncue.rules.evaluation.owner_shares import OwnerShares, used_up
from oncue.rules.evaluation.trials import TrialFile
from oncue.rules.loop_turn import LoopTurn
from oncue.rules.outcomes.outcome_batches import OutcomeBatches
from oncue.rules.parsing.rule_file import RuleSet
from oncue.rules.task_frames import EndpointDirectory, commit

GROUP = "rules"
OUTCOMES_GROUP = "rules.outcomes"
REPLAYS_GROUP = "rules.replays"  # commits appends only, no offsets
OUTCOMES_S = 2.0  # between two commits of outcomes that start no rule
SKIP_S = 0.2  # while no rule is on outcomes, those of this time are skipped together
MAX_BATCHES = 16  # in one commit
EXPLAINS = 16  # questions that may wait for one another
LARGE_BYTES = 128 * 1024  # of an event that is decoded beside the event loop
MANY_ACTIONS = 500  # whose frames are encoded beside the event loop
HELD_BYTES = 32 * 1024 * 1024  # of arguments and matches in memory; then large ones become blobs

_log = logging.getLogger(__name__)


class Engine:
    """Matches events until cancelled (`run`).

    `update` replaces the rules between two steps. `offload` stores a payload that is too large to
    travel inline as a durable blob and returns the reference.
    """

    def __init__(
        self,
        log: Log,
        directory: EndpointDirectory,
        *,
        before_batch: Callable[[], Awaitable[None]] | None = None,
        offload: Callable[[bytes], Awaitable[bytes]] | None = None,
        group: str = GROUP,
        replay: str = "",
        record_pause: Pause | None = None,
        trials: TrialFile | None = None,
    ) -> None:
        self._log, self._directory, self._group, self._replay = log, directory, group, replay
        self._before_batch, self._offload, self._record_pause = before_batch, offload, record_pause
        self.judge = RuleJudge(self._pause, trials)
        self._shares = OwnerShares()
        self._explainer = Evaluator(waiting=EXPLAINS)
        self._compiler = RuleCompiler()
        self.active_rules = ActiveRules()
        self.events = self.dead = 0  # events seen and dead letters written since the start

    def update(
        self,
        deployments: Iterable[Deployment],
        switches: Iterable[RuleSwitch] = (),
        parsed: Mapping[str, RuleSet] | None = None,
    ) -> ActiveRules:
        """Replace the active rules.

        `parsed`: label -> rules that are parsed already. Deployments that cannot be read are in
        `active_rules.broken`.
        """
        self.active_rules = self._compiler.compile(deployments, switches, parsed)
        return self.active_rules

    async def run(self) -> None:
        """Run until cancelled. Raises LogError: the log is closed or refuses a commit."""
        reader = self._log.read([EVENTS], group=self._group)
        try:
            while True:
                await self.step(await reader.next(max_batches=MAX_BATCHES))
        finally:
            await reader.close()

    async def run_outcomes(self, outcomes: OutcomeBatches) -> None:
        """Match outcomes of tasks until cancelled. Raises LogError, as `run` does."""
        reader = self._log.read([RESULTS], group=OUTCOMES_GROUP)
        committed = time.monotonic()
        try:
            while True:
                batches = await reader.next(max_batches=MAX_BATCHES)
                if not self.active_rules.follow_any and len(batches) < MAX_BATCHES:
                    # Nobody waits for these. Rules of a deploy meanwhile are in force for them.
                    await asyncio.sleep(SKIP_S)
                late = time.monotonic() > committed + OUTCOMES_S
                if await self.step_outcomes(batches, outcomes, late):
                    committed = time.monotonic()
        finally:
            await reader.close()

    async def step_outcomes(
        self, batches: Sequence[RecordBatch], outcomes: OutcomeBatches, commit_all: bool = True
    ) -> bool:
        """Process batches of results; return True if they are committed.

        Those that start nothing are committed only with `commit_all`: they may be read again, and a
        commit for each would slow down everybody's tasks.
        """
        if self._before_batch is not None:
            await self._before_batch()
        done: list[RecordBatch] = []
        work = self._new_work()
        for batch in batches:
            async for part in outcomes.parts(batch, self.active_rules.follow):
                await self._process(work, part.batch, part.events)
                work.add_task_ends(part.closed)
            done.append(batch)
            if work.held_bytes > HELD_BYTES:
                if not await self._commit(work, done, OUTCOMES_GROUP):
                    return True
                work, done = self._new_work(), []
        if not done or not (commit_all or work.has_results):
            work.count()
            return False
        await self._commit(work, done, OUTCOMES_GROUP)
        return True

    def _new_work(self) -> BatchResult:
        return BatchResult(self.active_rules, self._directory, self._replay)

    async def step(self, batches: Sequence[RecordBatch]) -> None:
        """Process batches and commit the results.

        Nothing is committed if another server owns the batches by now.
        """
        if self._before_batch is not None:
            await self._before_batch()
        done: list[RecordBatch] = []
        work = self._new_work()
        for batch in batches:
            rest: RecordBatch | None = batch
            while rest is not None:
                part, rest = await self._process(work, rest)
                done.append(part)
                if work.held_bytes > HELD_BYTES:  # what one commit holds in memory is bounded
                    if not await self._commit(work, done, self._group):
                        return
                    work, done = self._new_work(), []
        if done:
            await self._commit(work, done, self._group)

    async def replay(
        self, entry: ActiveRule, name: str, batches: Sequence[RecordBatch], priority: int | None = None
    ) -> tuple[int, int]:
        """Test one rule with stored events once more; return the tasks and dead letters.

        The ids of its tasks follow from `name`. `priority`: of them; None: the rule's. No other
        rule sees the events, and no offset moves.
        """
        tasks = dead = 0
        for batch in batches:
            rest: RecordBatch | None = batch
            while rest is not None:
                work = BatchResult(ActiveRules([entry]), self._directory, name)
                work.frames.priority = priority
                _, rest = await self._process(work, rest)
                await self._commit(work, (), REPLAYS_GROUP)
                tasks, dead = tasks + work.frames.tasks, dead + len(work.frames.dead)
        return tasks, dead

    async def _process(
        self, work: BatchResult, batch: RecordBatch, events: Sequence[Event] = ()
    ) -> tuple[RecordBatch, RecordBatch | None]:
        """Process a batch until the work holds much.

        Return what was processed, and the rest. `events`: the records, if they are decoded already;
        then there is no rest.
        """
        turn = LoopTurn()
        for at, (offset, record) in enumerate(zip(batch.offsets, batch.records, strict=True), 1):
            event = events[at - 1] if events else None
            if event is None and len(record.value) > LARGE_BYTES:  # up to 0.1 s, of which the loop gets its share
                event = await asyncio.to_thread(decoded_apart, record)
            if (postponed := work.process(batch, offset, record, event)) is not None:
                await self._test_postponed(work, postponed)
            if turn.is_over:
                await turn.end()
            if work.held_bytes > HELD_BYTES and at < len(batch.records) and not events:
                return batch.split(at)
        return batch, None

    async def _commit(self, work: BatchResult, batches: Sequence[RecordBatch], group: str) -> bool:
        """Commit the results; return False if another server owns the batches by now."""
        work.add_untested()
        if self._offload is not None:
            await work.frames.offload(self._offload)
        many = work.frames.actions > MANY_ACTIONS
        appends = await asyncio.to_thread(work.appends) if many else work.appends()
        try:
            await commit(self._log, group, batches, appends, repeatable=work.repeatable)
        except NotOwner as e:
            _log.info("left to another server: %s", e.message)
            return False
        work.count()
        self.events += sum(len(b.records) for b in batches if b.topic == EVENTS)
        self.dead += len(work.frames.dead)
        return True

    async def _test_postponed(self, work: BatchResult, event: Postponed) -> None:
        """Test the rules that may take long, or that are many, for one event."""
        turn, before = LoopTurn(), work.frames.tasks
        shares, left = self._shares.of_event(), set[str]()
        alone = len(self.active_rules.owners) < 2
        for entry in event.entries:
            owner = entry.deployment.owner
            if not alone and shares.are_used_up(owner):
                if owner not in left:
                    left.add(owner)
                    why = f"{used_up(owner)}; this one, and those of {owner} that come after it, were left out"
                    work.leave_rest(event, entry, why)
                continue
            began = perf_counter()
            if not entry.paused and (excess := work.excess(entry, before)):
                work.refuse(event, entry, excess)
            else:
                await self._test(work, event, entry)
            shares.add(owner, perf_counter() - began)
            if turn.is_over:
                if work.frames.held_bytes > HELD_BYTES and self._offload is not None:
                    await work.frames.offload(self._offload)
                await turn.end()

    async def _test(self, work: BatchResult, event: Postponed, entry: ActiveRule) -> None:
        if entry.inline_bytes < 0 and not entry.paused:
            entry.cost()
        if entry.paused:
            work.leave_untested(event, entry, f"the rule is paused: {entry.paused}")
        elif event.size <= entry.inline_bytes:
            work.test(event.batch, event.offset, event.record, event.event, entry)
        elif work.may_match(event, entry):
            await self._ask(work, event, entry)

    async def _ask(self, work: BatchResult, event: Postponed, entry: ActiveRule) -> None:
        about = f"event {event.event.id} of {event.event.source}"
        try:
            answer = await self.judge.ask(entry, work.question(event, entry), about)
        except NotTested as e:
            work.leave_untested(event, entry, str(e))
        else:
            work.take(event, entry, answer)

    async def _pause(self, entry: ActiveRule, why: str) -> bool:
        """Pause a rule here, at once, and record it for all servers."""
        self._compiler.pause(entry, why)
        _log.error("the rule %r is paused: %s", entry.rule.name, why)
        return await self._record_pause(entry, why) if self._record_pause is not None else True

    async def close(self) -> None:
        """End the processes that evaluate rules."""
        await self.judge.close()
        await self._explainer.close()

    async def explain(self, rule: str, event: Event) -> Explanation:
        """Explain a rule for an event.

        It is evaluated apart: nobody waits for it. Raises NotFound: the rule is not deployed;
        EvaluatorBusy.
        """
        entry = self.active_rules.entries.get(rule)
        if entry is None:
            raise NotFound(f"there is no rule {rule!r}", remedy="`oncue rules` lists those that are deployed")
        return await explain_apart(self._explainer, entry, event)

    def made_before(self, rule: str, tasks: int) -> None:
        """Count tasks of a rule that existed before, as reported by the view."""
        if (entry := self.active_rules.entries.get(rule)) is not None:
            entry.counters.doubles += tasks

    def rules(self) -> list[RuleInfo]:
        """Return all deployed rules with their states and counters. For any thread."""
        return [_info(entry) for entry in self.active_rules.entries.values()]

    def rule(self, name: str) -> RuleInfo | None:
        """Return one deployed rule."""
        entry = self.active_rules.entries.get(name)
        return _info(entry) if entry is not None else None

    def counts(self) -> dict[str, tuple[int, int]]:
        """Return (fired, suppressed) of the rules that have either."""
        counters = ((name, entry.counters) for name, entry in self.active_rules.entries.items())
        return {name: (c.new_tasks, c.suppressed) for name, c in counters if c.fired or c.suppressed}

    def unevaluated(self) -> dict[str, int]:
        """Return by rule how many events could not be evaluated."""
        counters = ((name, entry.counters) for name, entry in self.active_rules.entries.items())
        return {name: c.unevaluated for name, c in counters if c.unevaluated}


def _info(entry: ActiveRule) -> RuleInfo:
    state, why = entry.state
    unknown = entry.counters.unknown
    return RuleInfo(
        name=entry.rule.name,
        label=entry.deployment.label,
        version=entry.deployment.version,
        enabled=not entry.disabled_because,
        on=entry.rule.on,
        runs=[run.function for run in entry.rule.runs],
        endpoint=", ".join(dict.fromkeys(run.endpoint for run in entry.rule.runs)),
        state=state,
        why=why or entry.counters.last_reason,
        fired=entry.counters.new_tasks,
        suppressed=entry.counters.suppressed,
        memory=entry.rule.operators.describe() if entry.rule.operators else "",
        empty=entry.counters.empty,
        shadow=entry.counters.shadow,
        unevaluated=entry.counters.unevaluated,
        unevaluated_why=unknown.why,
        unevaluated_source=unknown.source,
        unevaluated_event=unknown.id,
        unevaluated_us=unknown.at_us,
    )
