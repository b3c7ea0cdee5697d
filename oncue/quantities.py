"""Durations, sizes and rates as text: "1h30m", "10 MiB", "200/week".

Annotate a field of an option Struct as `Duration` (int, milliseconds), `Walltime` (the same, but
schedulers' clock form 1:30:00 is accepted too), `Size` (int, bytes) or `RateLimit` (Rate). In rule
files and `endpoint.yaml` the field then accepts text, or a plain number of seconds or bytes.

    class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        stable: Duration = 2_000
        largest: Size | None = None
"""

from __future__ import annotations

import re  # safe for text from users: these patterns match in linear time
from decimal import Decimal
from typing import Annotated, Any, get_args

import msgspec

#: Values of `Annotated` metadata, by which the parser of rule files converts text.
DURATION, SIZE, RATE, WALLTIME = "duration", "size", "rate", "walltime"


class Rate(msgspec.Struct, frozen=True):
    """Amount per time: `200/week` is 200.0 in 604,800,000 ms."""

    amount: float
    per_ms: int


Duration = Annotated[int, msgspec.Meta(extra={"quantity": DURATION})]
Walltime = Annotated[int, msgspec.Meta(extra={"quantity": WALLTIME})]
Size = Annotated[int, msgspec.Meta(extra={"quantity": SIZE})]
RateLimit = Annotated[Rate, msgspec.Meta(extra={"quantity": RATE})]

UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_LONG = {"sec": "s", "secs": "s", "second": "s", "seconds": "s", "min": "m", "mins": "m", "minute": "m", "minutes": "m"}
_LONG |= {"hour": "h", "hours": "h", "hr": "h", "day": "d", "days": "d", "msec": "ms", "week": "w", "weeks": "w"}
UNIT_BYTES = {"B": 1} | {
    prefix + unit: base**power
    for unit, base in (("B", 1000), ("iB", 1024))
    for power, prefix in enumerate(("k" if base == 1000 else "K", "M", "G", "T", "P"), 1)
}
_SIZES = {name.lower(): factor for name, factor in UNIT_BYTES.items()}
_PART = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-zµμ]+)\s*")
_NUMBER = re.compile(r"\d{1,15}(?:\.\d{1,9})?")
_CLOCK = re.compile(r"(?:(\d{1,4})-)?(\d{1,6}):([0-5]\d)(?::([0-5]\d))?")
_RATE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*/\s*(.{1,40})")
MOST_MS = 100 * 366 * 86_400_000
MOST_BYTES = (1 << 63) - 1


def duration_ms(value: str | int | float) -> int:
    """Convert a duration to milliseconds.

    `value` is a text ("250ms", "2s", "1.5h", "1h30m") or a number of seconds. Raises ValueError
    with an example of the right form.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"a duration is a text like 2s, 5m or 250ms, not {_named(value)}")
    if isinstance(value, str):
        return _within(_sum_duration(value.strip(), value), value, MOST_MS, "100 years")
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError(f"{value} is not a duration; write 2s, 5m or 250ms")
    if value < 0:
        raise ValueError(f"a duration is not negative ({value})")
    return _within(Decimal(str(value)) * 1000, value, MOST_MS, "100 years")


def walltime_ms(value: str | int | float) -> int:
    """Convert a batch job's time limit to milliseconds.

    `value` is a duration, or a text in a form of the schedulers: 1:30:00, 2-12:00:00, 2-12:00. Two
    numbers alone (90:00) mean different things to Slurm (minutes and seconds) and LSF (hours and
    minutes), and are refused. Raises ValueError.
    """
    clock = _CLOCK.fullmatch(value.strip()) if isinstance(value, str) else None
    if clock is None:
        return duration_ms(value)
    days, hours, minutes, seconds = clock.groups()
    if seconds is None and days is None:
        raise ValueError(f"{value!r} is ambiguous: write 90m, 1h30m or 1:30:00")
    total = ((int(days or 0) * 24 + int(hours)) * 60 + int(minutes)) * 60 + int(seconds or 0)
    return _within(Decimal(total * 1000), value, MOST_MS, "100 years")


def parse_rate(value: str) -> Rate:
    """Convert an amount per time: "6/min", "200/week", "10/2h".

    Raises ValueError with an example of the right form.
    """
    match = _RATE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        shown = repr(value) if isinstance(value, str | int | float) else _named(value)
        raise ValueError(f"{shown} is not an amount per time; write 6/min, 200/week or 10/2h")
    per = match[2].strip()
    per_ms = duration_ms(per if per[0].isdigit() else f"1{per}")
    if not per_ms:
        raise ValueError(f"{value!r} is per no time; write 6/min, 200/week or 10/2h")
    return Rate(float(match[1]), per_ms)


def size_bytes(value: str | int) -> int:
    """Convert a size to bytes.

    `value` is a text ("1MB" = 1,000,000, "10 MiB" = 10,485,760, "512 kB") or a number of bytes.
    Case does not matter. Raises ValueError with an example of the right form.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise ValueError(f"a size is not negative ({value})")
        return _within(Decimal(value), value, MOST_BYTES, "8 EiB")
    if not isinstance(value, str):
        raise ValueError(f"a size is a text like 1MB or 10 MiB, or a whole number of bytes, not {_named(value)}")
    text = value.strip()
    if _NUMBER.fullmatch(text) and "." not in text:
        return _within(Decimal(text), value, MOST_BYTES, "8 EiB")
    match = _PART.fullmatch(text)
    if match is None:
        raise ValueError(f"{value!r} is not a size; write 1MB, 10 MiB or 1GB, or a number of bytes")
    factor = _SIZES.get(match[2].lower())
    if factor is None:
        raise ValueError(f"{match[2]!r} is not a unit of size; there are {', '.join(UNIT_BYTES)}")
    return _within(Decimal(match[1]) * factor, value, MOST_BYTES, "8 EiB")


def duration_text(ms: int) -> str:
    """Return the shortest text that `duration_ms` converts back: 2_000 is "2s"."""
    for unit in ("d", "h", "m", "s"):
        if ms and ms % UNIT_MS[unit] == 0:
            return f"{ms // UNIT_MS[unit]}{unit}"
    return f"{ms}ms"


def rate_text(rate: Rate) -> str:
    """Return a text that `parse_rate` converts back: "6/min", "200/week", "10/2h"."""
    names = {60_000: "min", 3_600_000: "h", 86_400_000: "day", 604_800_000: "week"}
    return f"{rate.amount:g}/{names.get(rate.per_ms) or duration_text(rate.per_ms)}"


def quantity_text(value: Any, kind: Any) -> Any:
    """Return a value as its file has it.

    `kind` is the type of the field, such as Size | None.
    """
    found = {
        str((meta.extra or {}).get("quantity"))
        for part in (kind, *get_args(kind))
        for meta in getattr(part, "__metadata__", ())
        if isinstance(meta, msgspec.Meta)
    }
    if value is None or not found & {DURATION, WALLTIME, RATE, SIZE}:
        return value
    if RATE in found:
        return rate_text(value)
    return size_text(value) if SIZE in found else duration_text(value)


def size_text(count: int) -> str:
    """Return a size for people: 1_500_000 is "1.5 MB"."""
    for unit in ("PB", "TB", "GB", "MB", "kB"):
        if count >= UNIT_BYTES[unit]:
            return f"{count / UNIT_BYTES[unit]:.4g} {unit}"
    return f"{count} B"


def _sum_duration(text: str, given: str) -> Decimal:
    if _NUMBER.fullmatch(text):
        return Decimal(text) * 1000
    total, at = Decimal(0), 0
    while at < len(text):
        match = _PART.match(text, at)
        if match is None:
            raise ValueError(f"{given!r} is not a duration; write 250ms, 2s, 5m, 1h or 1h30m")
        total += Decimal(match[1]) * _unit_ms(match[2])
        at = match.end()
    if not at:
        raise ValueError("an empty text is not a duration; write 250ms, 2s, 5m or 1h")
    return total


def _unit_ms(unit: str) -> int:
    factor = UNIT_MS.get(unit) or UNIT_MS.get(_LONG.get(unit.lower(), ""), 0)
    if not factor:
        raise ValueError(f"{unit!r} is not a unit of time; there are {', '.join(UNIT_MS)}")
    return factor


def _within(value: Decimal, given: object, most: int, limit: str) -> int:
    if value > most:
        raise ValueError(f"{given!r} is over the limit of {limit}")
    if value != int(value):
        if value < 1:
            raise ValueError(f"{given!r} is less than one unit can express")
        return round(value)
    return int(value)


def _named(value: object) -> str:
    names = {type(None): "nothing", bool: "true or false", list: "a list", dict: "a mapping", float: "a fraction"}
    return names.get(type(value), type(value).__name__)
