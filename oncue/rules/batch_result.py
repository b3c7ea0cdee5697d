"""BatchResult: what the rules make of the events of several batches.

Tasks, matches for stateful rules, and dead letters; the engine commits them together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from oncue.clocks.process import now_us
from oncue.errors import Invalid, OncueError
from oncue.ids import rule_task_ids
from oncue.log.base import Append, Record, RecordBatch
from oncue.protocol import cloudevents
from oncue.protocol.codec import encode
from oncue.protocol.event_types import FILE_EVENT, OUTCOME_SOURCE, chain_depth, extension_number, mark_us
from oncue.protocol.records import (
    STORED_EVENT_BYTES,
    VERSION,
    DeadLetter,
    Event,
    headers_within_limit,
)
from oncue.protocol.topics import MATCHES, RESULTS
from oncue.rules.active_rules import ActiveRule, ActiveRules, Unevaluated
from oncue.rules.evaluation.messages import EVENT, FAILED, FIRES, MATCHED, NO, Answer, Question
from oncue.rules.explain import decide
from oncue.rules.operators.chain import OperatorChain, limited_key
from oncue.rules.operators.records import TaskEnd
from oncue.rules.task_frames import EndpointDirectory, MadeTask, RuleError, TaskFrames

MAX_DEPTH = 16  # longest chain of events that cause one another; more is a loop
MAX_FILE_DEPTH = 8  # the same of files that functions wrote
LETTER_EVENTS, LETTER_BYTES = 1_000, 8 * 1024 * 1024  # that one dead letter names
REASON_CHARS = 300  # of the reason why a condition could not be evaluated
KEPT_BYTES = 4 * 1024 * 1024  # of events in the dead letters of one commit; others are only named
EVENT_TASKS = 20_000  # that one event may make
EVENT_ARGUMENTS_BYTES = 256 * 1024 * 1024  # of these tasks, in memory
EVENT_MATCHES_BYTES = 64 * 1024 * 1024  # that one event may make for the stateful rules of one owner
FEW = 4  # rules tested for an event without looking at the clock


class Postponed(NamedTuple):
    """Rules that are tested one by one for an event, after a look at their cost."""

    batch: RecordBatch
    offset: int
    record: Record
    event: Event
    size: int  # in bytes
    entries: list[ActiveRule]


class BatchResult:
    """Tasks, matches and dead letters of several batches.

    Counters are updated after the commit.
    """

    def __init__(self, active_rules: ActiveRules, directory: EndpointDirectory, replay: str) -> None:
        self._active_rules, self._replay = active_rules, replay
        now = now_us()
        self.frames = TaskFrames(directory, now, replay)
        self._now_ms = now // 1000
        self._matches: list[Record] = []
        self._matches_bytes = 0
        self._event_matches: dict[str, int] = {}  # owner -> bytes of matches of the event at hand
        self._matched: dict[ActiveRule, list[int]] = {}  # see _counts
        self._reasons: dict[ActiveRule, str] = {}
        self._unknown: dict[ActiveRule, Unevaluated] = {}
        self._kept_bytes = 0  # of events in dead letters
        self._untested: dict[tuple[ActiveRule, int, str], list[Postponed]] = {}  # by rule, partition, reason

    def process(self, batch: RecordBatch, offset: int, record: Record, event: Event | None = None) -> Postponed | None:
        """Test the rules that certainly take little time; return the others.

        `event`: the record, if it is decoded already.
        """
        self._event_matches.clear()
        try:
            event = event or _decoded(record)
            entries = self._candidates(batch, record, event)
        except RuleError as e:
            self._to_dead_letters(batch, offset, record, e, event)
            return None
        except Exception as e:
            self._to_dead_letters(batch, offset, record, RuleError("match", f"{type(e).__name__}: {e}"), event)
            return None
        size = len(record.value)
        if len(record.headers) > 1:  # binary mode: the attributes are there
            size += sum(len(name) + len(value) for name, value in record.headers)
        if len(entries) > FEW:
            return Postponed(batch, offset, record, event, size, entries)
        postponed = []
        for entry in entries:
            if size > entry.inline_bytes:
                postponed.append(entry)
            else:
                self.test(batch, offset, record, event, entry)
        return Postponed(batch, offset, record, event, size, postponed) if postponed else None

    def _candidates(self, batch: RecordBatch, record: Record, event: Event) -> list[ActiveRule]:
        """Return the rules that may fire.

        An event of a sender is never taken for an outcome.
        """
        if batch.topic == RESULTS:
            return self._active_rules.outcome_candidates(event, record.time_ms)
        return self._active_rules.candidates(event)

    def test(self, batch: RecordBatch, offset: int, record: Record, event: Event, entry: ActiveRule) -> None:
        """Test one rule, and make its tasks or its match."""
        try:
            failed = decide(entry.rule, event)
            if failed is None:
                _check_chain(event)
                operators = entry.rule.operators
                if operators is None:
                    self._fire(entry, event)
                else:
                    self._match(entry, operators, event, self._accepted_ms(record))
            elif failed.reason:
                self._could_not_evaluate(entry, event, failed.reason)
        except RuleError as e:
            self._to_dead_letters(batch, offset, record, e, event, entry)
        except Exception as e:
            error = RuleError("match", f"{type(e).__name__}: {e}")
            self._to_dead_letters(batch, offset, record, error, event, entry)

    # ------------------------------------------------------------ rules that are evaluated apart

    def may_match(self, event: Postponed, entry: ActiveRule) -> bool:
        """Return False if `on` and `match` do not hold, where that is cheap to test."""
        if event.size > entry.cost().conditions:
            return True
        try:
            return all(condition.test(event.event) for condition in entry.rule.conditions)
        except Exception:  # the evaluator says why
            return True

    def question(self, event: Postponed, entry: ActiveRule) -> Question:
        deployment, record = entry.deployment, event.record
        return Question(
            EVENT,
            record.value,
            record.headers,
            deployment.label,
            deployment.version,
            self._accepted_ms(record),
            mark_us(event.event),
        )

    def take(self, event: Postponed, entry: ActiveRule, answer: Answer) -> None:
        """Make tasks, a match or a dead letter of an answer."""
        try:
            if answer.kind in (FIRES, MATCHED):
                _check_chain(event.event)
            if answer.kind == FIRES:
                self._fire(entry, event.event, answer.tasks)
            elif answer.kind == MATCHED:
                self._counts(entry)[0] += 1
                self._add_match(entry, Record(answer.match, answer.key))
            elif answer.kind == NO and answer.reason:
                self._could_not_evaluate(entry, event.event, answer.reason)
            elif answer.kind == FAILED:
                self._counts(entry)[0] += answer.stage == "args"
                raise RuleError(answer.stage, answer.reason, answer.remedy)
        except RuleError as e:
            self._to_dead_letters(event.batch, event.offset, event.record, e, event.event, entry)

    def leave_untested(self, event: Postponed, entry: ActiveRule, why: str) -> None:
        """Note an event that a rule does not test."""
        if self.may_match(event, entry):
            self.leave_rest(event, entry, why)

    def leave_rest(self, event: Postponed, entry: ActiveRule, why: str) -> None:
        """Note an event that a rule, and maybe later ones, do not even begin to test."""
        self._untested.setdefault((entry, event.batch.partition, why), []).append(event)

    def excess(self, entry: ActiveRule, tasks: int) -> str:
        """Return what the event has made too much of to test another rule; "": nothing.

        `tasks`: those that were there before it.
        """
        if self.frames.tasks - tasks > EVENT_TASKS or self.frames.held_bytes > EVENT_ARGUMENTS_BYTES:
            return f"{self.frames.tasks:,} tasks, the most that one event may make, by other rules"
        size = self._event_matches.get(entry.deployment.owner, 0)
        if entry.rule.operators is not None and size > EVENT_MATCHES_BYTES:
            return f"{size >> 20} MiB for other rules with operators to keep, the most that one event may make of one owner"
        return ""

    def refuse(self, event: Postponed, entry: ActiveRule, excess: str) -> None:
        """Make a dead letter for a rule that an event reaches after too many others."""
        if self.may_match(event, entry):
            error = RuleError(
                "dispatch",
                f"the event has made {excess}",
                "narrow the rules that match it (`oncue events show` names them), then `oncue dead retry N`",
            )
            self._to_dead_letters(event.batch, event.offset, event.record, error, event.event, entry)

    def add_untested(self) -> None:
        """Make dead letters of the events that rules did not test."""
        for (entry, partition, why), events in self._untested.items():
            self._counts(entry)[2] += len(events)
            self._reasons[entry] = "" if entry.paused else why  # the state of a paused rule says why
            self.frames.dead += [self._letter(entry, partition, part, why) for part in _parts(events)]
        self._untested.clear()

    def _letter(self, entry: ActiveRule, partition: int, events: Sequence[Postponed], why: str) -> DeadLetter:
        first, repair = events[0], entry.repair if entry.paused else "wait"
        what = "1 event was" if len(events) == 1 else f"{len(events):,} events were"
        return DeadLetter(
            VERSION,
            "match",
            f"{what} not tested: {why}"[:2_000],
            self.frames.now_us,
            first.batch.topic,
            partition,
            first.offset,
            entry.rule.name,
            (first.event.source, first.event.id),
            remedy=f"{repair}, then `oncue dead retry N` (N: this letter's number)",
            owner=entry.deployment.owner,
            offsets=tuple(event.offset for event in events),
        )

    # ------------------------------------------------------------ what a rule makes

    def _fire(self, entry: ActiveRule, event: Event, made: Sequence[MadeTask] | None = None) -> None:
        """Make the tasks of all functions of the rule. Raises RuleError: none is made.

        `made`: what an evaluator made of them.
        """
        counts = self._counts(entry)
        counts[0] += 1
        if self.frames.in_shadow(entry):
            return
        ready = self.frames.prepare(entry, event, made)
        task_ids = rule_task_ids(
            entry.rule.name,
            self._replay,
            event.source,
            event.id,
            extension_number(event.extensions.get("oncuetimems")),
            len(ready),
        )
        mark = 0 if self._replay else mark_us(event)  # a replay is no measure of latency
        self.frames.add(entry, ready, task_ids, (event.source, event.id), mark)
        counts[1] += len(ready)

    def _could_not_evaluate(self, entry: ActiveRule, event: Event, why: str) -> None:
        """Count an event whose condition is neither true nor false: it does not fire."""
        self._counts(entry)[3] += 1
        self._unknown[entry] = Unevaluated(why[:REASON_CHARS], event.source, event.id, self.frames.now_us)

    def _match(self, entry: ActiveRule, operators: OperatorChain, event: Event, at_ms: int) -> None:
        self._counts(entry)[0] += 1
        label, version = entry.deployment.label, entry.deployment.version
        try:
            match = operators.match(entry.rule.name, label, version, event, at_ms, mark_us(event))
        except Invalid as e:
            raise RuleError("args", e.message, e.remedy) from None
        self._add_match(entry, Record(encode(match), operators.partition_key(match)))

    def add_task_ends(self, ends: Sequence[TaskEnd]) -> None:
        """Tell limiters of tasks that closed."""
        self._matches += [Record(encode(end), limited_key(end.rule)) for end in ends]

    def _add_match(self, entry: ActiveRule, record: Record) -> None:
        owner, size = entry.deployment.owner, len(record.value)
        self._matches.append(record)
        self._matches_bytes += size
        self._event_matches[owner] = self._event_matches.get(owner, 0) + size

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
            self._counts(entry)[2] += 1
            self._reasons[entry] = error.reason
        value, headers = record.value[:STORED_EVENT_BYTES], headers_within_limit(record.headers)
        if batch.topic == RESULTS:  # a retry makes the event again, from the task that it names
            value, headers = b"", ()
        offsets: tuple[int, ...] = ()
        self._kept_bytes += len(value)
        if value and event is not None and self._kept_bytes > KEPT_BYTES:  # a retry reads it where it is
            value, headers, offsets = b"", (), (offset,)
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
                value,
                error.remedy,
                entry.deployment.owner if entry else "",
                headers,
                offsets,
            )
        )

    def _accepted_ms(self, record: Record) -> int:
        """Return when an event was accepted.

        On Kafka the time is the producer's: a clock that is ahead must not close windows.
        """
        return min(record.time_ms, self._now_ms)

    def _counts(self, entry: ActiveRule) -> list[int]:
        """Return [matched, fired, failed, unevaluated] of a rule, to be increased."""
        return self._matched.setdefault(entry, [0, 0, 0, 0])

    @property
    def held_bytes(self) -> int:
        """Return the size of arguments and matches in memory."""
        return self.frames.held_bytes + self._matches_bytes

    @property
    def repeatable(self) -> bool:
        """True if a repeated commit is harmless.

        Tasks keep their ids when an event is delivered again; matches and dead letters would be
        doubled.
        """
        return not self._matches and not self.frames.dead

    @property
    def has_results(self) -> bool:
        """True if there is anything to append."""
        return bool(self.frames.tasks or self.frames.dead or self._matches or self._untested)

    def appends(self) -> list[Append]:
        matches = [Append(MATCHES, self._matches)] if self._matches else []
        return [*self.frames.appends(), *matches]

    def count(self) -> None:
        for entry, (matched, fired, failed, unevaluated) in self._matched.items():
            counters = entry.counters
            counters.matched += matched
            counters.fired += fired
            counters.failed += failed
            counters.last_reason = self._reasons.get(entry, counters.last_reason)
            counters.unevaluated += unevaluated
            counters.unknown = self._unknown.get(entry, counters.unknown)
            counters.empty += self.frames.empty.get(entry, 0)
            counters.shadow += self.frames.shadow.get(entry, 0)


def decoded_apart(record: Record) -> Event | None:
    """Decode an event in any thread; None: `process` says what is wrong."""
    try:
        return _decoded(record)
    except Exception:
        return None


def _parts(events: Sequence[Postponed]) -> Iterator[list[Postponed]]:
    """Split events, so that those of one letter can be retried together."""
    if events[0].batch.topic == RESULTS:  # a letter names one outcome
        yield from ([event] for event in events)
        return
    part: list[Postponed] = []
    size = 0
    for event in events:
        part.append(event)
        size += event.size
        if len(part) >= LETTER_EVENTS or size >= LETTER_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _decoded(record: Record) -> Event:
    """Decode an event. Raises RuleError: it is not an event, or part of a loop."""
    try:
        event = cloudevents.from_record(record.value, record.headers)
    except OncueError as e:
        raise RuleError("decode", e.message, e.remedy) from None
    except Exception as e:
        raise RuleError("decode", f"{type(e).__name__}: {e}") from None
    if (depth := chain_depth(event)) >= MAX_DEPTH:
        reason = f"the event is number {depth} in a chain of events that caused one another; {MAX_DEPTH} is the limit"
        raise RuleError("match", reason, "is there a rule whose function makes the event that fires it?")
    return event


def _check_chain(event: Event) -> None:
    """Raise RuleError at the end of a chain of tasks, or of files by functions."""
    depth = chain_depth(event)
    if event.source == OUTCOME_SOURCE and depth > MAX_DEPTH:
        raise RuleError(
            "match",
            f"the task is number {depth} in a chain of rules that follow one another; {MAX_DEPTH} is the limit",
            "end the circle: add `match` or `when` to one of its rules",
        )
    if event.type != FILE_EVENT or depth < MAX_FILE_DEPTH:
        return
    raise RuleError(
        "match",
        f"the file is number {depth} in a chain of files that functions wrote; {MAX_FILE_DEPTH} is the limit",
        "let the function write into another folder, or leave its files out with the trigger's `ignore`;"
        " `loops: allow` if the loop is meant",
    )
