"""Numbers in JSON that take long to decode, in a call that holds the interpreter.

Most floats take 30 ns. One with 20 digits, between two doubles and with a large exponent, takes
90 µs; an integer of 4,300 digits takes a millisecond.
"""

from __future__ import annotations

import math
import re

import msgspec

MOST = 100  # such numbers in one value
FREE_BYTES = 2_000  # a shorter value has no more of them
LARGE_BYTES = 32 * 1024  # of a value whose floats are made one by one: other threads get their turn
_PIECE = 1 << 18  # searched at once
_DIGITS = bytes(ord("0") if chr(b) in "0123456789." else ord(" ") for b in range(256))
_LONG, _LONGER = b"0" * 20, b"0" * 40
_LARGE = rb"[+-]?0*(?:[1-9][0-9]{2}|[6-9][0-9])"  # an exponent from 60 on
_EXPONENT = re.compile(rb"[eE](?<=[0-9.]{20}[eE])" + _LARGE)
_DEAR = re.compile(rb'(?<![0-9."])(?:[0-9.]{40,}+|[0-9.]{20,}+(?=[eE]' + _LARGE + rb"))")
_PER_DIGITS = 200  # an integer of so many digits counts as another one
#: A text of JSON, or the rest of a body in which it is not closed: so the search takes linear time.
TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_QUOTES = 40_000  # texts in a value with more are not left out: that would take over 30 ms


def check_numbers(data: bytes) -> None:
    """Raise msgspec.ValidationError if too many numbers take long."""
    if len(data) <= FREE_BYTES or not _may_have_many(data):
        return
    if data.count(b'"') <= _QUOTES:
        data = TEXT.sub(b'""', data)
    count = 0
    for start in range(0, len(data), _PIECE):
        for found in _DEAR.finditer(data, start, start + _PIECE):
            count += 1 + len(found[0]) // _PER_DIGITS
            if count > MOST:
                raise msgspec.ValidationError(
                    f"more than {MOST} numbers have over 40 digits, or over 20 and a large exponent: send them as text"
                )


def _may_have_many(data: bytes) -> bool:
    runs = data.translate(_DIGITS)
    if _LONG not in runs:
        return False
    count = runs.count(_LONGER)
    for start in range(0, len(data), _PIECE):
        count += len(_EXPONENT.findall(data, start, start + _PIECE))
    return count > MOST


def float_of(text: str) -> float:
    """Return a float of JSON, for msgspec's `float_hook`. Raises ValueError."""
    found = float(text)
    if math.isinf(found):
        raise ValueError("Number out of range")
    return found
