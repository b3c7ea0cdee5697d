"""Lines in the logs of oncue's processes: escaped, and limited in number.

Text of outsiders (names, error messages, frames) is part of many lines. So the formatter escapes
every message, and what an outsider can cause at will goes through a LineLimiter.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, TextIO

from oncue.text.escape import escaped

FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
MESSAGE_CHARS: Final = 8_192  # of one line; a longer one is cut
PERIOD_S: Final = 60.0
SUBJECTS: Final = 1_000  # remembered by a LineLimiter


class LineFormatter(logging.Formatter):
    """Formats a record as one line; the lines of a traceback are indented.

    Nothing in a message can begin a line of its own.
    """

    def __init__(self) -> None:
        super().__init__(FORMAT)

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line, escaped."""
        if len(record.message) > MESSAGE_CHARS:
            record.message = f"{record.message[:MESSAGE_CHARS]}… ({len(record.message):,} characters)"
        return escaped(super().formatMessage(record))

    def formatException(self, ei: object) -> str:
        """Return the traceback, indented and escaped."""
        text = super().formatException(ei)  # type: ignore[arg-type]
        return "\n".join("    " + escaped(line) for line in text.split("\n"))

    def formatStack(self, stack_info: str) -> str:
        """Return the stack, indented and escaped."""
        return "\n".join("    " + escaped(line) for line in stack_info.split("\n"))


def log_to(stream: TextIO | None = None) -> None:
    """Log from INFO on to this stream, by default stderr, with LineFormatter."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class LineLimiter:
    """Logs at most `burst` lines per subject and minute, and counts the others.

    The next line of a subject says how many were left out. `subject`: what the lines are about, for
    example an endpoint and a reason; it must not be text that an outsider can vary at will.
    """

    def __init__(
        self,
        logger: logging.Logger,
        period_s: float = PERIOD_S,
        burst: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger, self._period_s, self._burst, self._clock = logger, period_s, burst, clock
        # Subject -> (begin of its minute, lines in it).
        self._subjects: OrderedDict[object, tuple[float, int]] = OrderedDict()

    def warning(self, subject: object, message: str, *args: object) -> None:
        """Log a warning, or count it."""
        self.log(logging.WARNING, subject, message, *args)

    def log(self, level: int, subject: object, message: str, *args: object, exc_info: bool = False) -> None:
        """Log a line, or count it."""
        now = self._clock()
        began, lines = self._subjects.get(subject, (-self._period_s, 0))
        left_out = max(0, lines - self._burst)
        if now - began < self._period_s:
            self._subjects[subject] = (began, lines + 1)
            if lines < self._burst:
                self._logger.log(level, message, *args, exc_info=exc_info)
            return
        self._subjects[subject] = (now, 1)
        self._subjects.move_to_end(subject)
        if len(self._subjects) > SUBJECTS:
            self._subjects.popitem(last=False)
        if left_out:
            message, args = message + " (and %d more since the last such line)", (*args, left_out)
        self._logger.log(level, message, *args, exc_info=exc_info)
