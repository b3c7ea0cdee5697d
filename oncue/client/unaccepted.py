"""What was submitted and not accepted, until a caller has seen it: no task may be lost without a word."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TextIO, cast

import msgspec

from oncue.errors import NotReady, OncueError, RateLimited, Unreachable

if TYPE_CHECKING:
    from oncue.client.batch import Batch

NAMED = 3  # ids in a message
KEPT = 1_024  # batches that are known one by one; of older ones there is only the count
AGAIN = (
    "start the server (`oncue up`) and submit again what `oncue tasks show ID` does not know: "
    "what was under way when the connection broke may have been accepted"
)
ON_ITS_WAY = "they are sent on while this client is open; start the server (`oncue up`), then flush() again"


class Rejection(msgspec.Struct, frozen=True):
    count: int  # of tasks
    first: list[str]  # ids of the first NAMED
    error: OncueError


class UnacceptedBatches:
    """Batches that were refused, or given up, and whose error no handle has raised yet. They are kept without their tasks,
    so that a client that nobody holds can go."""

    def __init__(self) -> None:
        self._refusals: dict[bytes, Rejection] = {}
        self._older: Rejection | None = None  # of more than KEPT batches, together

    def add(self, batch: Batch, error: OncueError) -> None:
        self._refusals[batch.prefix] = refusal(batch, error)
        if len(self._refusals) > KEPT:
            oldest = self._refusals.pop(next(iter(self._refusals)))
            known = self._older
            self._older = msgspec.structs.replace(known, count=known.count + oldest.count) if known else oldest

    def told(self, batch: Batch) -> None:
        """A handle raises its error now."""
        self._refusals.pop(batch.prefix, None)

    def take(self) -> OncueError | None:
        """One error for all of them, which counts as told; None when there are none."""
        found = [self._older] if self._older else []
        found += self._refusals.values()
        self._refusals.clear()
        self._older = None
        return summary(found) if found else None


def refusal(batch: Batch, error: OncueError) -> Rejection:
    count = len(batch.ended)
    return Rejection(count, [batch.id(i).hex() for i in range(min(NAMED, count))], error)


def summary(refusals: list[Rejection], *, given_up: bool = True) -> OncueError:
    """How many tasks, which ones, why, and what to do. Unreachable when the server was away for some, else what it said
    of the first."""
    away = [r for r in refusals if isinstance(r.error, Unreachable | NotReady | RateLimited)]
    why = (away or refusals)[0].error
    count = sum(r.count for r in refusals)
    first = [i for r in refusals[:NAMED] for i in r.first][:NAMED]
    more = f" and {count - len(first):,} more" if count > len(first) else ""
    what = f"{count:,} submitted tasks" if count > 1 else "1 submitted task"
    verb = ("were" if count > 1 else "was") + " not accepted" if given_up else "not accepted yet"
    message = f"{what} {verb}: {why.message} ({', '.join(first)}{more})"
    details = why.details | {"count": count, "tasks": first}
    if away:
        return Unreachable(message, remedy=AGAIN if given_up else ON_ITS_WAY, **details)
    return type(why)(message, remedy=why.remedy, **details)


# ---------------------------------------------------------------- at the program's end


class _Failing:
    """A stream whose last flush fails. The interpreter's end is then an error, as for any buffered data that it could not
    deliver: it exits with 120 (documented with `sys.exit`), after all other work of its end was done."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def flush(self) -> None:
        self._stream.flush()
        if sys.is_finalizing():
            raise OSError("tasks were not accepted")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def exit_with(error: OncueError) -> None:
    """For when nobody is left to catch it: tell it on stderr, and let the program's exit code not be 0."""
    if sys.stderr is None:
        return
    sys.stderr.write(f"oncue: {error}\n")
    if not isinstance(sys.stderr, _Failing):
        sys.stderr = cast(TextIO, _Failing(sys.stderr))
