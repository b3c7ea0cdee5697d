"""Filters of `${path | filter | filter(...)}`, for texts and numbers.

A Filter is compiled with its arguments, and takes linear time. A text that a filter makes has at
most as many characters as the one that it gets, or MAX_CHARS. What cannot be done raises
ValueError.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import msgspec

from oncue.errors import Invalid
from oncue.protocol.codec import INT_MAX, INT_MIN
from oncue.rules.matching.conditions import show
from oncue.rules.matching.regex import compile_regex

MAX_CHARS = 4_096
MAX_WIDTH = 100
MAX_DIGITS = 30  # of a text that becomes a number


class NoValue(NamedTuple):
    """The reason why there is no value; the filter `default` replaces it."""

    why: str
    remedy: str = ""


class Filter(NamedTuple):
    """A compiled filter. `program_size`: of its regular expression, for its cost."""

    apply: Callable[[Any], Any]
    program_size: int = 0
    replaces_missing: bool = False


Make = Callable[..., Filter]


def make_filter(name: str, args: Sequence[Any], given: bool) -> Filter:
    """Compile a filter. `given`: it has parentheses. Raises ValueError."""
    if name not in _FILTERS:
        close = difflib.get_close_matches(name[:60], _FILTERS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(_FILTERS))}"
        raise ValueError(f"there is no filter {name!r}: {hint}")
    if not given and name in _BARE:
        return _BARE[name]
    make, usage, least, most = _FILTERS[name]
    if not least <= len(args) <= most or (given and not most):
        raise ValueError(f"`{name}` is written {usage}")
    try:
        return make(*args)
    except ValueError as e:
        raise ValueError(f"`{name}`: {e}") from None
    except Invalid as e:
        raise ValueError(f"`{name}`: {e.message} ({e.remedy})") from None


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"`{name}` is for a text, and the value is {type(value).__name__}")
    return value


def _of_path(name: str) -> Make:
    part = attrgetter(name)
    return lambda: Filter(lambda value: str(part(PurePosixPath(_text(name, value)))))


def _of_text(name: str, change: Callable[[str], str]) -> Make:
    return lambda: Filter(lambda value: bounded(change(_text(name, value)), value))


def bounded(text: str, before: str = "") -> str:
    """Return a text that a filter made. Raises ValueError if it has become too long."""
    if len(text) > max(len(before), MAX_CHARS):
        raise ValueError(f"a text of {len(text):,} characters was made; at most {MAX_CHARS:,}")
    return text


def _regex(pattern: Any, group: Any = None) -> Filter:
    if not isinstance(pattern, str):
        raise ValueError("the pattern is a text in quotes")
    expression = compile_regex(pattern)
    groups = expression.groups
    wanted = (1 if groups else 0) if group is None else group
    if isinstance(wanted, str) and wanted not in expression.groupindex:
        raise ValueError(f"the pattern has no group {wanted!r}")
    if isinstance(wanted, bool | float) or (isinstance(wanted, int) and not 0 <= wanted <= groups):
        raise ValueError(f"the pattern has groups 0 to {groups}, not {wanted}")

    def apply(value: Any) -> Any:
        try:
            found = expression.search(_text("regex", value).encode())
        except UnicodeEncodeError:
            found = None
        part = found.group(wanted) if found is not None else None
        if part is None:
            return NoValue(
                f"{pattern!r} is not found in {show(value)}", "match on it with `regex`, or add | default(...)"
            )
        return part.decode("utf-8", "replace")

    return Filter(apply, expression.programsize)


def _replace(old: Any, new: Any) -> Filter:
    if not isinstance(old, str) or not isinstance(new, str) or not old:
        raise ValueError("it takes two texts in quotes, the first not empty")

    def apply(value: Any) -> str:
        text = _text("replace", value)
        if len(new) > len(old) and len(text) + text.count(old) * (len(new) - len(old)) > max(len(text), MAX_CHARS):
            raise ValueError(f"`replace` would make a text of over {MAX_CHARS:,} characters")
        return text.replace(old, new)

    return Filter(apply)


def _split(separator: Any, index: Any = None) -> Filter:
    if not isinstance(separator, str) or not separator:
        raise ValueError("the separator is a text in quotes")
    if index is not None and type(index) is not int:
        raise ValueError("the part is a whole number: 0 is the first, -1 the last")

    def apply(value: Any) -> Any:
        parts = _text("split", value).split(separator)
        if index is None:
            return parts
        try:
            return parts[index]
        except IndexError:
            return NoValue(f"{show(value)} has {len(parts)} parts between {separator!r}, and no part {index}")

    return Filter(apply)


def _join(separator: Any) -> Filter:
    if not isinstance(separator, str):
        raise ValueError("the separator is a text in quotes")

    def apply(value: Any) -> str:
        if not isinstance(value, list) or not all(isinstance(item, str | int | float) for item in value):
            raise ValueError("`join` is for a list of texts and numbers")
        size = sum(len(item) if isinstance(item, str) else MAX_DIGITS for item in value) + len(separator) * len(value)
        if len(separator) > 1 and size > MAX_CHARS:
            raise ValueError(f"`join` would make a text of over {MAX_CHARS:,} characters")
        return separator.join(as_text(item) for item in value)

    return Filter(apply)


def as_text(value: Any) -> str:
    """Return a value as part of a text: texts unchanged, other values as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _slice(start: Any, end: Any = None) -> Filter:
    if type(start) is not int or (end is not None and type(end) is not int):
        raise ValueError("it takes whole numbers: where to start, and before what to end")
    return Filter(lambda value: _text("slice", value)[start:end])


def _int() -> Filter:
    def apply(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(f"`int` is for a text or a number, and the value is {type(value).__name__}")
        try:
            number = int(value.strip() if isinstance(value, str) and len(value) <= MAX_DIGITS else value)
        except (ValueError, OverflowError):
            raise ValueError(f"{show(value)} is not a whole number") from None
        return whole(number)

    return Filter(apply)


def _float() -> Filter:
    def apply(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, str | int | float) or len(str(value)) > MAX_CHARS:
            raise ValueError(f"`float` is for a text or a number, and the value is {type(value).__name__}")
        try:
            return float(value)
        except (ValueError, OverflowError):
            raise ValueError(f"{show(value)} is not a number") from None

    return Filter(apply)


def whole(number: int) -> int:
    """Return a whole number of at most 64 bits. Raises ValueError."""
    if not INT_MIN <= number <= INT_MAX:
        raise ValueError("a whole number has more than 64 bits")
    return number


def _round(digits: Any = 0) -> Filter:
    if type(digits) is not int or not 0 <= digits <= 15:
        raise ValueError("it takes 0 to 15 digits")

    def apply(value: Any) -> int | float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"`round` is for a number, and the value is {type(value).__name__}")
        try:
            return round(value, digits) if digits else whole(round(value))
        except (ValueError, OverflowError):
            raise ValueError(f"{value} cannot be rounded") from None

    return Filter(apply)


def _pad(width: Any, fill: Any = "0") -> Filter:
    if type(width) is not int or not 0 < width <= MAX_WIDTH:
        raise ValueError(f"the width is 1 to {MAX_WIDTH}")
    if not isinstance(fill, str) or len(fill) != 1:
        raise ValueError("the fill is one character in quotes")

    def apply(value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError(f"`pad` is for a whole number or a text, and the value is {type(value).__name__}")
        text = value if isinstance(value, str) else str(whole(value))
        return text.zfill(width) if fill == "0" else text.rjust(width, fill)

    return Filter(apply)


def _default(value: Any) -> Filter:
    return Filter(lambda found: value if isinstance(found, NoValue) else found, replaces_missing=True)


# name -> how it is made, how it is written, and how many arguments it takes
_FILTERS: dict[str, tuple[Make, str, int, int]] = {
    **{name: (_of_path(name), name, 0, 0) for name in ("name", "stem", "suffix", "parent")},
    "lower": (_of_text("lower", str.lower), "lower", 0, 0),
    "upper": (_of_text("upper", str.upper), "upper", 0, 0),
    "strip": (_of_text("strip", str.strip), "strip", 0, 0),
    "regex": (_regex, "regex('pattern'), or with a group regex('pattern', 2)", 1, 2),
    "replace": (_replace, "replace('old', 'new')", 2, 2),
    "split": (_split, "split('_'), or for one part split('_', 0)", 1, 2),
    "join": (_join, "join(',')", 1, 1),
    "slice": (_slice, "slice(start) or slice(start, end)", 1, 2),
    "int": (_int, "int", 0, 0),
    "float": (_float, "float", 0, 0),
    "round": (_round, "round, or round(digits)", 0, 1),
    "pad": (_pad, "pad(width), or pad(width, ' ')", 1, 2),
    "default": (_default, "default(value)", 1, 1),
}
_BARE = {name: make() for name, (make, _, least, _) in _FILTERS.items() if not least}
