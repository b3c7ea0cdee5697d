"""Engine: matches events of `oncue.events` against rules and makes tasks.

    oncue.events ─batches─► decode ─► index ─► decide ─► arguments ─► TaskFrames (endpoint, action)
                              │                  │           │
                              │   stateful rules └─► Match ─► oncue.matches (embedded_runner.py)
                              └── oncue.dead (reason) ◄──────┘
    All results of a step are committed in one transaction: commit("rules", batches, appends).

After a crash before the commit the batches are delivered again and make the same tasks: ids follow
from rule and event. A bad event or rule gives a dead letter and does not affect others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from oncue.errors import Invalid, NotFound, NotOwner, OncueError
from oncue.ids import now_us, rule_task_ids
from oncue.log.base import Append, Log, Record, RecordBatch
from oncue.protocol import cloudevents
from oncue.protocol.api import Explanation, RuleInfo
from oncue.protocol.codec import encode
from oncue.protocol.records import EVENT_BYTES, VERSION, DeadLetter, Deployment, Event, RuleSwitch, headers_within_limit
from oncue.protocol.topics import EVENTS, MATCHES
from oncue.rules.active_rules import ActiveRule, ActiveRules, RuleCompiler
from oncue.rules.explain import decide, explain
from oncue.rules.operators.chain import OperatorChain
from oncue.rules.parsing.rule_file import RuleSet
from oncue.rules.task_frames import EndpointDirectory, RuleError, TaskFrames, commit

GROUP = "rules"
MAX_DEPTH = 16  # longest chain of events that cause one another; more is a loop
MAX_BATCHES = 16  # in one commit
YIELD_EVENTS = 256  # events between two yields to the event loop

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
    ) -> None:
        self._log, self._directory, self._group, self._replay = log, directory, group, replay
        self._before_batch, self._offload = before_batch, offload
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

    async def step(self, batches: Sequence[RecordBatch]) -> None:
        """Process batches and commit the results.

        Nothing is committed if another server owns the batches by now.
        """
        if self._before_batch is not None:
            await self._before_batch()
        work = _BatchResult(self.active_rules, self._directory, self._replay)
        for batch in batches:
            for start in range(0, len(batch.records), YIELD_EVENTS):
                for offset, record in zip(
                    batch.offsets[start : start + YIELD_EVENTS],
                    batch.records[start : start + YIELD_EVENTS],
                    strict=True,
                ):
                    work.process(batch, offset, record)
                if start + YIELD_EVENTS < len(batch.records):
                    await asyncio.sleep(0)
        if self._offload is not None:
            await work.frames.offload(self._offload)
        try:
            await commit(self._log, self._group, batches, work.appends(), repeatable=work.repeatable)
        except NotOwner as e:
            _log.info("left to another server: %s", e.message)
            return
        work.count()
        self.events += sum(len(b.records) for b in batches)
        self.dead += len(work.frames.dead)

    def explain(self, rule: str, event: Event) -> Explanation:
        """Explain a rule for an event. Raises NotFound: the rule is not deployed."""
        entry = self.active_rules.entries.get(rule)
        if entry is None:
            raise NotFound(f"there is no rule {rule!r}", remedy="`oncue rules` lists those that are deployed")
        return explain(entry.rule, event, disabled_because=entry.disabled_because)

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
        return {name: (max(0, c.fired - c.doubles), c.suppressed) for name, c in counters if c.fired or c.suppressed}


def _info(entry: ActiveRule) -> RuleInfo:
    state, why = entry.state
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
        fired=max(0, entry.counters.fired - entry.counters.doubles),
        suppressed=entry.counters.suppressed,
        memory=entry.rule.operators.describe() if entry.rule.operators else "",
    )


class _BatchResult:
    """Tasks, matches and dead letters of several batches.

    Counters are updated after the commit.
    """

    def __init__(self, active_rules: ActiveRules, directory: EndpointDirectory, replay: str) -> None:
        self._active_rules, self._replay = active_rules, replay
        self.frames = TaskFrames(directory, now_us())
        self._matches: list[Record] = []
        self._matched: dict[ActiveRule, list[int]] = {}  # entry -> [matched, fired, failed]
        self._reasons: dict[ActiveRule, str] = {}

    def process(self, batch: RecordBatch, offset: int, record: Record) -> None:
        event: Event | None = None
        try:
            event = _decoded(record)
            entries = self._active_rules.candidates(event)
        except RuleError as e:
            self._to_dead_letters(batch, offset, record, e, event)
            return
        except Exception as e:
            self._to_dead_letters(batch, offset, record, RuleError("match", f"{type(e).__name__}: {e}"), event)
            return
        for entry in entries:
            try:
                if decide(entry.rule, event) is None:
                    operators = entry.rule.operators
                    if operators is None:
                        self._fire(entry, event)
                    else:
                        self._match(entry, operators, event, record.time_ms)
            except RuleError as e:
                self._to_dead_letters(batch, offset, record, e, event, entry)
            except Exception as e:
                error = RuleError("match", f"{type(e).__name__}: {e}")
                self._to_dead_letters(batch, offset, record, error, event, entry)

    def _fire(self, entry: ActiveRule, event: Event) -> None:
        """Make the tasks of all functions of the rule. Raises RuleError: none is made."""
        counts = self._matched.setdefault(entry, [0, 0, 0])
        counts[0] += 1
        ready = self.frames.prepare(entry, event)
        extensions = event.extensions
        task_ids = rule_task_ids(
            entry.rule.name,
            self._replay,
            event.source,
            event.id,
            _number(extensions.get("oncuetimems")),
            len(ready),
        )
        cause, mark_us = (event.source, event.id), _number(extensions.get("oncuemarkus")) or 0
        self.frames.add(entry, ready, task_ids, cause, mark_us)
        counts[1] += len(ready)

    def _match(self, entry: ActiveRule, operators: OperatorChain, event: Event, at_ms: int) -> None:
        self._matched.setdefault(entry, [0, 0, 0])[0] += 1
        mark_us = _number(event.extensions.get("oncuemarkus")) or 0
        deployment = entry.deployment
        try:
            match = operators.match(entry.rule.name, deployment.label, deployment.version, event, at_ms, mark_us)
        except Invalid as e:
            raise RuleError("args", e.message, e.remedy) from None
        self._matches.append(Record(encode(match), operators.partition_key(match)))

    def _to_dead_letters(
        self,
        batch: RecordBatch,
        offset: int,
        record: Record,
        error: RuleError,
        event: Event | None,
        entry: ActiveRule | None = None,
    ) -> None:
        if entry is not None:
            self._matched.setdefault(entry, [0, 0, 0])[2] += 1
            self._reasons[entry] = error.reason
        self.frames.dead.append(
            DeadLetter(
                VERSION,
                error.stage,
                error.reason[:2_000],
                self.frames.now_us,
                batch.topic,
                batch.partition,
                offset,
                entry.rule.name if entry else "",
                (event.source, event.id) if event else None,
                record.value[:EVENT_BYTES],
                error.remedy,
                entry.deployment.owner if entry else "",
                headers_within_limit(record.headers),
            )
        )

    @property
    def repeatable(self) -> bool:
        """True if a repeated commit is harmless.

        Tasks keep their ids when an event is delivered again; matches and dead letters would be
        doubled.
        """
        return not self._matches and not self.frames.dead

    def appends(self) -> list[Append]:
        matches = [Append(MATCHES, self._matches)] if self._matches else []
        return [*self.frames.appends(), *matches]

    def count(self) -> None:
        for entry, (matched, fired, failed) in self._matched.items():
            counters = entry.counters
            counters.matched += matched
            counters.fired += fired
            counters.failed += failed
            counters.last_reason = self._reasons.get(entry, counters.last_reason)


def _decoded(record: Record) -> Event:
    """Decode an event. Raises RuleError: it is not an event, or part of a loop."""
    try:
        event = cloudevents.from_record(record.value, record.headers)
    except OncueError as e:
        raise RuleError("decode", e.message, e.remedy) from None
    except Exception as e:
        raise RuleError("decode", f"{type(e).__name__}: {e}") from None
    depth = _number(event.extensions.get("oncuedepth")) or 0
    if depth >= MAX_DEPTH:
        reason = f"the event is number {depth} in a chain of events that caused one another; {MAX_DEPTH} is the limit"
        raise RuleError("match", reason, "is there a rule whose function makes the event that fires it?")
    return event


def _number(value: Any) -> int | None:
    """Return a number in an extension; None: it has none.

    CloudEvents stores numbers over 32 bits as text.
    """
    if type(value) is int:
        return value if value >= 0 else None
    if type(value) is str and value.isascii() and value.isdigit() and len(value) <= 18:
        return int(value)
    return None
