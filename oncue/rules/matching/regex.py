"""Regular expressions of rule files, in linear time and bounded memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from oncue.errors import Invalid
from oncue.globs import compiled_text

MAX_REGEX_CHARS = 1_000
MOST_PROGRAM = 4_000_000  # instructions of all expressions of a request: 50 MB, 2 s
REGEX_BYTES = 1024 * 1024  # of a compiled regex; RE2's 8 MB take 0.2 s to fill, without the GIL's release


class ProgramMeter:
    """Counts the instructions of the expressions that are compiled meanwhile."""

    def __init__(self, most: int) -> None:
        """`most`: 0 means any number."""
        self.used, self._most = 0, most

    def check(self) -> None:
        """Raise Invalid if there are too many already."""
        if self._most and self.used > self._most:
            raise Invalid(
                f"the globs and regular expressions have over {self._most:,} instructions together",
                remedy="deploy fewer rules at once; classes such as \\pL and counts such as {40} are large",
            )


_meter: ContextVar[ProgramMeter | None] = ContextVar("oncue_program_meter", default=None)


@contextlib.contextmanager
def metered(most: int = 0) -> Iterator[ProgramMeter]:
    """Count what is compiled inside, and refuse more than `most` instructions."""
    meter = ProgramMeter(most)
    token = _meter.set(meter)
    try:
        yield meter
    finally:
        _meter.reset(token)


def measured(compiling: Callable[[], Any]) -> Any:
    """Return the compiled expression, counted. Raises Invalid if there are too many."""
    meter = _meter.get()
    if meter is None:
        return compiling()
    meter.check()
    expression = compiling()
    meter.used += expression.programsize
    return expression


def compile_regex(pattern: str) -> Any:
    """Compile a pattern. Raises Invalid."""
    import re2  # an endpoint does without it

    if len(pattern) > MAX_REGEX_CHARS:
        raise Invalid(f"the regex has {len(pattern)} characters", remedy=f"at most {MAX_REGEX_CHARS}")
    try:
        return measured(lambda: compiled_text(pattern, REGEX_BYTES))
    except re2.error as e:
        reason = e.args[0].decode() if e.args and isinstance(e.args[0], bytes) else str(e)
        raise Invalid(
            f"the regex {pattern!r} cannot be used: {reason}",
            remedy="it is RE2 syntax: no backreferences, no lookaround",
        ) from None
