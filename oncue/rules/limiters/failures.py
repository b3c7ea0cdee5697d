"""pause_on_failures: after so many failures in a row, firings wait for a person."""

from __future__ import annotations

from typing import Self

import msgspec

from oncue.protocol.records import CANCELLED, EXPIRED, OK, REFUSED
from oncue.rules.limiters.base import MOST_QUEUE, Limiter, LimiterState, Verdict
from oncue.rules.operators.base import OperatorFinding
from oncue.rules.operators.options import whole_number
from oncue.strict_yaml.document import Node, Problems

MOST = 1_000
COUNTED = 64  # outcomes that are known again, if they are told twice
UNCOUNTED = (CANCELLED, EXPIRED, REFUSED)  # they say nothing of the function


class FailuresState(LimiterState, tag="pause_on_failures", frozen=True):
    in_row: int = 0  # failures since the last success
    stopped_ms: int = 0  # when there were too many; 0: there are not
    failed: bytes = b""  # the task that failed last
    counted: tuple[bytes, ...] = ()  # tasks whose outcome is in it, the newest last

    def due_ms(self) -> int:
        return 1 if self.queued and not self.stopped_ms else 0

    def forget_ms(self) -> int:
        return 0 if self.queued or self.stopped_ms or self.in_row else self.at_ms or 1

    def after(self, task: bytes, status: int, most: int, at_ms: int) -> Self | None:
        """Return the state after the outcome of a task; None: nothing changes."""
        if status in UNCOUNTED or task in self.counted or (status == OK and not self.in_row):
            return None
        counted = (*self.counted, task)[-COUNTED:]
        if status == OK:
            return msgspec.structs.replace(self, in_row=0, counted=counted)
        in_row = self.in_row + 1
        stopped_ms = self.stopped_ms or (at_ms if in_row >= most else 0)
        return msgspec.structs.replace(self, in_row=in_row, stopped_ms=stopped_ms, failed=task, counted=counted)


class FailuresLimiter(Limiter[FailuresState], tag="pause_on_failures", frozen=True):
    failures: int = 1
    since_ms: int = 0  # when a person has resumed the rule

    STATE = FailuresState
    OPTIONS = ()
    EXAMPLE = "5"
    PAUSES = True

    def admit(self, state: FailuresState, at_ms: int) -> Verdict:
        return Verdict.PASS if not state.queued and self.has_room(state, at_ms) else Verdict.QUEUE

    def has_room(self, state: FailuresState, at_ms: int) -> bool:
        return not state.stopped_ms or state.stopped_ms <= self.since_ms

    def enter(self, state: FailuresState, firing: bytes, at_ms: int) -> FailuresState:
        return state

    def resumed(self, at_ms: int) -> Self:
        return msgspec.structs.replace(self, since_ms=at_ms)

    def adapted(self, state: FailuresState) -> FailuresState:
        if not state.stopped_ms or state.stopped_ms > self.since_ms:
            return state
        return msgspec.structs.replace(state, in_row=0, stopped_ms=0)

    def describe(self) -> str:
        return f"a pause after {self.failures:,} failures in a row" if self.failures > 1 else "a pause after a failure"

    def preview(self, state: FailuresState | None, key: str, at_ms: int) -> OperatorFinding:
        wanted = f"less than {self.failures:,} failures in a row"
        if state is None or not state.in_row:
            return OperatorFinding(True, "no failure since the last success", wanted)
        found = self._found(state)
        passes = self.admit(state, at_ms) is Verdict.PASS
        return OperatorFinding(True, found, wanted, "" if passes else f"it waits: {found}")

    def waits(self, state: FailuresState, key: str, at_ms: int) -> str:
        return f"{state.queued:,} wait: {self._found(state)}; `oncue rules enable RULE` lets them run"

    def _found(self, state: FailuresState) -> str:
        return f"{state.in_row:,} tasks have failed in a row, the last is {state.failed.hex()}"


def parse_failures(node: Node | None, problems: Problems) -> tuple[FailuresLimiter, ...]:
    """Parse `pause_on_failures`."""
    failures = whole_number(node, "pause_on_failures", MOST, problems)
    return (FailuresLimiter("", MOST_QUEUE, failures=failures),) if failures else ()
