"""limit: so many firings of a key run at once; the others wait, or are skipped.

A firing runs from when it passes until all its tasks have their outcome, however often they are
retried.
"""

from __future__ import annotations

from typing import Self

import msgspec

from oncue.ids import nth_id
from oncue.protocol.records import Stored
from oncue.rules.limiters.base import Limiter, LimiterState, Verdict, key_text, one_of, parse_queue
from oncue.rules.operators.base import OperatorFinding
from oncue.rules.operators.options import require, whole_number
from oncue.strict_yaml.document import Node, Problems

OVERLAPS = ("queue", "skip", "newest")
MOST = 1_000  # firings of a key that run
SHOWN = 5  # of them, in words
VERDICTS = {"queue": Verdict.QUEUE, "skip": Verdict.DROP, "newest": Verdict.REPLACE}


class Running(Stored, frozen=True):
    """A firing that runs.

    It has the beginning of its tasks' ids, and a bit for each of those that ended.
    """

    firing: bytes
    ended: bytes = b""


class RunningState(LimiterState, tag="limit", frozen=True):
    running: tuple[Running, ...] = ()  # the oldest first

    def forget_ms(self) -> int:
        return 0 if self.running or self.queued else self.at_ms or 1

    def ended(self, firing: bytes, index: int, of: int) -> Self | None:
        """Return the state after the outcome of a task; None: it does not run here."""
        found = next((r for r in self.running if r.firing == firing), None)
        if found is None:
            return None
        ended = int.from_bytes(found.ended, "little") | 1 << index
        if ended.bit_count() < of:
            packed = ended.to_bytes((ended.bit_length() + 7) // 8, "little")
            changed = tuple(Running(firing, packed) if r is found else r for r in self.running)
        else:
            changed = tuple(r for r in self.running if r is not found)
        return msgspec.structs.replace(self, running=changed)


class RunningLimiter(Limiter[RunningState], tag="limit", frozen=True):
    running: int = 1
    overlap: str = "queue"

    STATE = RunningState
    OPTIONS = ("running", "overlap", "queue", "full")
    EXAMPLE = "{running: 8}"

    @classmethod
    def parse(cls, node: Node, key: str, problems: Problems) -> Self | None:
        get = node.value.get
        require(node, "limit", cls.EXAMPLE, ("running",), problems)
        running = whole_number(get("running"), "limit.running", MOST, problems)
        overlap = one_of(get("overlap"), "limit.overlap", OVERLAPS, problems)
        queue, full = parse_queue("limit", node, problems)
        for option in ("queue", "full"):
            if overlap != "queue" and option in node.value:
                what = f"limit.{option} is of `overlap: queue`; with `overlap: {overlap}` there is no queue"
                problems.add(node.value[option], what, "leave one of them out")
        return cls(key, queue, full, running, overlap)

    def admit(self, state: RunningState, at_ms: int) -> Verdict:
        if not state.queued and self.has_room(state, at_ms):
            return Verdict.PASS
        return VERDICTS[self.overlap]

    def has_room(self, state: RunningState, at_ms: int) -> bool:
        return len(state.running) < self.running

    def enter(self, state: RunningState, firing: bytes, at_ms: int) -> RunningState:
        return msgspec.structs.replace(state, running=(*state.running, Running(firing)))

    def describe(self) -> str:
        more = {"queue": "", "skip": ", others are skipped", "newest": ", the newest waits"}[self.overlap]
        return f"at most {self.running:,} running{self.by_key()}{more}"

    def preview(self, state: RunningState | None, key: str, at_ms: int) -> OperatorFinding:
        wanted = f"less than {self.running:,} running"
        if state is None or not (state.running or state.queued):
            return OperatorFinding(True, f"none runs{key_text(self, key)}", wanted)
        found = self._found(state, key)
        verdict = self.admit(state, at_ms)
        if verdict is Verdict.PASS:
            return OperatorFinding(True, found, wanted)
        if verdict is Verdict.DROP:
            return OperatorFinding(False, found, wanted)
        why = f"it waits: {found}"
        if verdict is Verdict.REPLACE and state.queued:
            why = f"it waits, in place of the one that waits: {found}"
        return OperatorFinding(True, found, wanted, why)

    def waits(self, state: RunningState, key: str, at_ms: int) -> str:
        return f"{state.queued:,} wait: {self._found(state, key)}"

    def _found(self, state: RunningState, key: str) -> str:
        tasks = [nth_id(r.firing, 0).hex() for r in state.running[:SHOWN]]
        more = f" and {len(state.running) - SHOWN:,} more" if len(state.running) > SHOWN else ""
        named = f": {'tasks' if len(state.running) > 1 else 'task'} {', '.join(tasks)}{more}" if tasks else ""
        return f"{len(state.running):,} of at most {self.running:,} run{key_text(self, key)}{named}"
