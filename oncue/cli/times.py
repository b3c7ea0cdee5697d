"""Times on the command line: 2h ago, yesterday, 14:30, ISO with a zone."""

from __future__ import annotations

import contextlib
import re
from datetime import datetime, timedelta

import click

from oncue.clocks.process import now_us
from oncue.errors import Invalid
from oncue.quantities import duration_ms

FORMS = "a time ago (30m, 2h, 3d), today, yesterday, a weekday, 14:30, 2026-11-30, or ISO 8601"
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+?)s?(?:\s+ago)?")
_UNITS = {
    "s": "s",
    "sec": "s",
    "second": "s",
    "m": "m",
    "min": "m",
    "minute": "m",
    "h": "h",
    "hr": "h",
    "hour": "h",
    "d": "d",
    "day": "d",
    "w": "w",
    "week": "w",
    "ms": "ms",
}


class Time(click.ParamType):
    """Type of `--since` and `--until`: unix time in µs."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return value if isinstance(value, int) else time_us(str(value))


def time_us(text: str, now: datetime | None = None) -> int:
    """Return unix time in µs of a time as people write it. Raises Invalid.

    A time without a zone is local. `now`: with a zone.
    """
    now = now or datetime.fromtimestamp(now_us() / 1e6).astimezone()
    found = _parse(text.strip(), now)
    if found is None or not 1970 <= found.year < 10_000:
        raise Invalid(f"{text!r} is not a time", remedy=f"give {FORMS}")
    return round(found.timestamp() * 1e6)


def _parse(text: str, now: datetime) -> datetime | None:
    word = text.lower()
    if word == "now":
        return now
    if word in ("today", "yesterday"):
        return _midnight(now, 1 if word == "yesterday" else 0)
    day = next((i for i, name in enumerate(_DAYS) if len(word) >= 3 and name.startswith(word)), None)
    if day is not None:
        return _midnight(now, (now.weekday() - day) % 7)
    if (ago := _ago_ms(word)) is not None:
        return now - timedelta(milliseconds=ago)
    if re.fullmatch(r"@\d{1,12}(\.\d+)?", text):
        return datetime.fromtimestamp(float(text[1:])).astimezone()
    clock = re.fullmatch(r"(?:(today|yesterday)\s+)?(\d{1,2}):(\d{2})(?::(\d{2}))?", word)
    try:
        if clock:
            start = _midnight(now, 1 if clock[1] == "yesterday" else 0)
            return start.replace(
                hour=int(clock[2]), minute=int(clock[3]), second=int(clock[4] or 0), tzinfo=None
            ).astimezone()
        made = datetime.fromisoformat(text)
        return made if made.tzinfo else made.astimezone()
    except (ValueError, OverflowError, OSError):
        return None


def _ago_ms(word: str) -> int | None:
    """Return the ms of "2h", "1h30m", "90 minutes ago"; None for something else."""
    found = _AGO.fullmatch(word)
    text = f"{found[1]}{_UNITS[found[2]]}" if found and found[2] in _UNITS else word
    with contextlib.suppress(ValueError):
        return duration_ms(text)
    return None


def _midnight(now: datetime, days_ago: int) -> datetime:
    """Return the local midnight at which that day began."""
    day = now.replace(tzinfo=None) - timedelta(days=days_ago)
    return day.replace(hour=0, minute=0, second=0, microsecond=0).astimezone()
