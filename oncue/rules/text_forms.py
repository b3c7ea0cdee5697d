"""Other forms of an event's texts, for which a failed condition would hold.

People do not see that `é` is one character or two (Unicode NFC and NFD), and overlook letter case.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from oncue.protocol.records import Event

MOST_CHARS = 50_000  # of an event's texts
MOST_VALUES = 5_000  # of an event: larger ones are not looked into
MOST_OF_ONE = 500  # a longer text stays: ordering its marks may take the square of its length
_UNICODE = "in another Unicode form (NFC, NFD) of the same letters it would hold"
_CASE = "in other case it would hold; the regex (?i) ignores case"
_FORMS: tuple[tuple[str, Callable[[str], str]], ...] = (
    (_UNICODE, partial(unicodedata.normalize, "NFC")),
    (_UNICODE, partial(unicodedata.normalize, "NFD")),
    (_CASE, str.lower),
    (_CASE, str.upper),
)


def near_miss(event: Event, holds: Callable[[Event], bool], found: str) -> str:
    """Return why a condition fails only for the form of a text; "" if there is more.

    `found`: what the condition has found; its code points are shown.
    """
    if _count(event.data, MOST_VALUES) <= 0:
        return ""
    for words, change in _FORMS:
        other = msgspec.structs.replace(
            event, data=_changed(event.data, change, [MOST_CHARS]), subject=_text(event.subject, change)
        )
        if (other.data, other.subject) != (event.data, event.subject) and holds(other):
            points = found.encode("ascii", "backslashreplace").decode()
            return f"{points}: {words}" if points != found else words
    return ""


def _count(value: Any, left: int) -> int:
    """Return what is left of a number of values; 0 or less: there are more."""
    left -= 1
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if left <= 0:
            break
        left = _count(item, left)
    return left


def _changed(value: Any, change: Callable[[str], str], left: list[int]) -> Any:
    """Return a copy with other texts, keys excepted.

    `left`: number of characters that may be changed.
    """
    if isinstance(value, dict):
        return {key: _changed(item, change, left) for key, item in value.items()}
    if isinstance(value, list):
        return [_changed(item, change, left) for item in value]
    if isinstance(value, str) and len(value) <= left[0]:
        left[0] -= len(value)
        return _text(value, change)
    return value


def _text(text: str | None, change: Callable[[str], str]) -> str | None:
    return change(text) if text is not None and len(text) <= MOST_OF_ONE else text
