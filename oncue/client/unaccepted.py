"""Batches that the server did not accept, until a caller has seen the error.

No submitted task may be lost silently: flush(), close() or the program's end reports it.
"""

from __future__ import annotations

import sys
from typing import Any, TextIO, cast

import msgspec

from oncue.client.batch import Batch
from oncue.errors import NotReady, OncueError, RateLimited, Unreachable

IDS_SHOWN = 3  # in a message
KEPT = 1_024  # batches kept one by one; older ones are only counted
AGAIN = (
    "start the server (`oncue up`) and submit again what `oncue tasks show ID` does not know: "
    "what was under way when the connection broke may have been accepted"
)
STILL_SENDING = "they are sent on while this client is open; start the server (`oncue up`), then flush() again"


class Rejection(msgspec.Struct, frozen=True):
    count: int  # of tasks
    first: list[str]  # ids the first IDS_SHOWN
    error: OncueError


class UnacceptedBatches:
    """Rejected or abandoned batches whose error no handle has raised yet.

    Only counts and ids are kept, so that a client without references can be collected.
    """

    def __init__(self) -> None:
        self._rejections: dict[bytes, Rejection] = {}
        self._older: Rejection | None = None  # of more than KEPT batches, together

    def add(self, batch: Batch[Any], error: OncueError) -> None:
        self._rejections[batch.prefix] = rejection_of(batch, error)
        if len(self._rejections) > KEPT:
            oldest = self._rejections.pop(next(iter(self._rejections)))
            known = self._older
            self._older = msgspec.structs.replace(known, count=known.count + oldest.count) if known else oldest

    def mark_reported(self, batch: Batch[Any]) -> None:
        """Forget the batch: a handle raises its error now."""
        self._rejections.pop(batch.prefix, None)

    def drain(self) -> OncueError | None:
        """Forget all batches and return one error for them; None if there are none."""
        found = [self._older] if self._older else []
        found += self._rejections.values()
        self._rejections.clear()
        self._older = None
        return summary(found) if found else None


def rejection_of(batch: Batch[Any], error: OncueError) -> Rejection:
    count = len(batch.ended)
    return Rejection(count, [batch.id(i).hex() for i in range(min(IDS_SHOWN, count))], error)


def summary(rejections: list[Rejection], *, given_up: bool = True) -> OncueError:
    """Return one error that counts and names all these tasks.

    It is Unreachable if the server was away for some of them, else of the class of the first
    rejection.
    """
    away = [r for r in rejections if isinstance(r.error, Unreachable | NotReady | RateLimited)]
    why = (away or rejections)[0].error
    count = sum(r.count for r in rejections)
    first = [i for r in rejections[:IDS_SHOWN] for i in r.first][:IDS_SHOWN]
    more = f" and {count - len(first):,} more" if count > len(first) else ""
    what = f"{count:,} submitted tasks" if count > 1 else "1 submitted task"
    verb = ("were" if count > 1 else "was") + " not accepted" if given_up else "not accepted yet"
    message = f"{what} {verb}: {why.message} ({', '.join(first)}{more})"
    details = why.details | {"count": count, "tasks": first}
    if away:
        return Unreachable(message, remedy=AGAIN if given_up else STILL_SENDING, **details)
    return type(why)(message, remedy=why.remedy, **details)


# ---------------------------------------------------------------- at the program's end


class _Failing:
    """Text stream whose last flush fails, which sets the exit code.

    The interpreter then exits with 120, as for any buffered data that it could not write
    (documented with `sys.exit`), after all other work of its shutdown is done.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def flush(self) -> None:
        self._stream.flush()
        if sys.is_finalizing():
            raise OSError("tasks were not accepted")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def exit_with(error: OncueError) -> None:
    """Report an error that nobody can catch: on stderr and by the exit code."""
    if sys.stderr is None:
        return
    sys.stderr.write(f"oncue: {error}\n")
    if not isinstance(sys.stderr, _Failing):
        sys.stderr = cast(TextIO, _Failing(sys.stderr))
