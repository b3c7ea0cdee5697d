"""Log lines: one line each, whatever an outsider writes, and not too many."""

from __future__ import annotations

import io
import logging

from oncue.text.log_lines import MESSAGE_CHARS, LineFormatter, LineLimiter

FORGED = "x\n2026-01-01 00:00:00,000 INFO oncue.server: all is well\r\x1b[2J\u2028\u202e"


def logger_to(stream: io.StringIO) -> logging.Logger:
    logger = logging.Logger("oncue.test")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter())
    logger.addHandler(handler)
    return logger


def test_a_message_is_one_line_without_control_characters() -> None:
    out = io.StringIO()
    logger_to(out).warning("endpoint %s failed: %s", "e", FORGED)
    assert out.getvalue().endswith("\n")
    assert out.getvalue()[:-1].isprintable()
    assert "\\x0a2026" in out.getvalue()


def test_a_message_of_any_length_is_cut() -> None:
    out = io.StringIO()
    logger_to(out).warning("%s", "a" * 1_000_000)
    assert len(out.getvalue()) < MESSAGE_CHARS + 200
    assert "1,000,000 characters" in out.getvalue()


def test_no_line_of_a_traceback_can_be_taken_for_a_record() -> None:
    out = io.StringIO()
    try:
        raise ValueError(FORGED)
    except ValueError:
        logger_to(out).error("work failed", exc_info=True)
    first, *rest = out.getvalue()[:-1].split("\n")
    assert first.endswith("ERROR oncue.test: work failed")
    assert rest
    assert all(line.startswith("    ") and line.isprintable() for line in rest)


def test_a_flood_is_one_line_a_minute_which_counts_the_rest() -> None:
    out, now = io.StringIO(), [0.0]
    limiter = LineLimiter(logger_to(out), clock=lambda: now[0])
    for second in range(121):
        now[0] = float(second)
        for _ in range(100):
            limiter.warning("ep_1", "endpoint %s sent garbage", "ep_1")
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[1].endswith("endpoint ep_1 sent garbage (and 5999 more since the last such line)")


def test_subjects_do_not_share_their_minute_and_are_bounded() -> None:
    out = io.StringIO()
    limiter = LineLimiter(logger_to(out), clock=lambda: 0.0)
    for n in range(5_000):
        limiter.warning(n, "subject %d", n)
    assert len(out.getvalue().splitlines()) == 5_000
    assert len(limiter._subjects) <= 1_000
