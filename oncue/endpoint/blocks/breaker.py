"""Breaker: pauses after blocks that die and submissions that fail. Pure.

A block dies if it ends, not by this endpoint, before a worker of it has registered. Of blocks that
die, at most `limit` are submitted within WINDOW_US. Deaths in a row lengthen the pause:

    death    1      2      3        4        5 ...
    pause  15 s   1 min  10 min   20 min   40 min ... 6 h

After the third, one block at a time is tried. The first one that registers ends the row.
"""

from __future__ import annotations

import msgspec

from oncue.endpoint.blocks.records import BlockHistory

DEATHS, WINDOW_US = 3, 600_000_000
FIRST_PAUSES_US = (15_000_000, 60_000_000)
PAUSE_US, PAUSE_CAP_US = 600_000_000, 6 * 3_600_000_000
AWAY_US, REFUSED_US, SUBMIT_CAP_US = 15_000_000, 60_000_000, 1_800_000_000
REMEMBERED = 256  # submissions and deaths


class Allowance(msgspec.Struct, frozen=True):
    """Number of blocks that may be submitted now, and why not more."""

    blocks: int
    why: str = ""
    retry_us: int = 0


def pause_us(deaths: int, most: int = DEATHS) -> int:
    """Return the pause after so many deaths in a row."""
    if deaths <= 0:
        return 0
    if deaths < most:
        return FIRST_PAUSES_US[min(deaths, len(FIRST_PAUSES_US)) - 1]
    return min(PAUSE_CAP_US, PAUSE_US << min(deaths - most, 20))


def after_deaths(
    history: BlockHistory, unproven: int, proven: bool, now_us: int, limit: int = DEATHS
) -> Allowance | None:
    """Return how many blocks deaths allow; None: any number.

    `unproven`: blocks that are asked for or run without a worker so far. `proven`: a block with
    workers runs now.
    """
    recent = sum(1 for at in history.deaths if at > now_us - WINDOW_US)
    if proven and not recent:
        return None
    words = _words(history)
    if history.deaths_in_row and now_us < (until := history.died_us + pause_us(history.deaths_in_row, limit)):
        return Allowance(0, f"{words}; the next try is in {span(until - now_us)}", until)
    most = 1 if history.deaths_in_row >= limit else limit - recent
    if recent >= limit:
        until = sorted(history.deaths)[-limit] + WINDOW_US
        return Allowance(0, f"{words}; the next try is in {span(until - now_us)}", until)
    why = words if recent else "the first blocks must show that workers start before more are asked for"
    return Allowance(max(0, most - unproven), why)


def after_refusals(history: BlockHistory, now_us: int) -> Allowance | None:
    """Return a pause after failed submissions; None if there is none."""
    if not history.refusals:
        return None
    first = REFUSED_US if history.final else AWAY_US
    until = history.refused_us + min(SUBMIT_CAP_US, first << min(history.refusals - 1, 20))
    if now_us >= until:
        return Allowance(1, f"the submission failed: {history.refused}")
    times = f"{history.refusals} times" if history.refusals > 1 else "once"
    return Allowance(0, f"submitting failed {times}: {history.refused}; next try in {span(until - now_us)}", until)


def is_open(history: BlockHistory, limit: int = DEATHS) -> bool:
    """Return True if blocks died so often in a row that asking has stopped."""
    return history.deaths_in_row >= limit


def _words(history: BlockHistory) -> str:
    count = history.deaths_in_row
    if not count:
        return f"a block ended before a worker had registered: {history.died}"
    blocks = f"{count} blocks in a row" if count > 1 else "a block"
    return f"{blocks} ended before a worker had registered: {history.died}"


def span(us: int) -> str:
    """Return a pause in words, rounded up."""
    seconds = max(1, -(-us // 1_000_000))
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7_200:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3_600:.1f} h"


# ---------------------------------------------------------------- changes of the history


def with_submission(history: BlockHistory, now_us: int) -> BlockHistory:
    return msgspec.structs.replace(history, submits=(*history.submits[1 - REMEMBERED :], now_us))


def with_death(history: BlockHistory, submitted_us: int, words: str, now_us: int) -> BlockHistory:
    return msgspec.structs.replace(
        history,
        deaths=(*history.deaths[1 - REMEMBERED :], submitted_us),
        deaths_in_row=history.deaths_in_row + 1,
        died_us=now_us,
        died=words,
    )


def with_registration(history: BlockHistory) -> BlockHistory:
    """Return the history after a block's first worker has registered."""
    return msgspec.structs.replace(history, deaths_in_row=0) if history.deaths_in_row else history


def with_refusal(history: BlockHistory, words: str, *, final: bool, now_us: int) -> BlockHistory:
    return msgspec.structs.replace(
        history,
        refusals=history.refusals + 1,
        refused_us=now_us,
        refused=words,
        final=final,
        submits_failed=history.submits_failed + 1,
    )


def with_acceptance(history: BlockHistory) -> BlockHistory:
    """Return the history after the scheduler has accepted a job."""
    return msgspec.structs.replace(history, refusals=0, refused="") if history.refusals else history


def with_reset(history: BlockHistory) -> BlockHistory:
    """Return the history after `oncue endpoint reset`: the breaker is closed."""
    return msgspec.structs.replace(
        history, deaths=(), deaths_in_row=0, died_us=0, died="", refusals=0, refused_us=0, refused=""
    )


def until_now(history: BlockHistory, now_us: int) -> BlockHistory:
    """Return the history without times in the future, of a clock that was ahead."""
    return msgspec.structs.replace(
        history,
        submits=tuple(min(at, now_us) for at in history.submits),
        deaths=tuple(min(at, now_us) for at in history.deaths),
        died_us=min(history.died_us, now_us),
        refused_us=min(history.refused_us, now_us),
    )
