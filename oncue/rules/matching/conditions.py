"""Conditions on an event, pure.

`explain` uses the same objects that the engine tests.

    Leaf    one operator on one path          Group   any / all / not over others

A path that the event does not have satisfies only `exists: false`, and whatever a `not` turns
around. true is not 1; 1 is 1.0. Texts are compared as they are; regex is searched anywhere (anchor
it with ^ and $) by google-re2, in linear time.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from oncue.globs import MAX_CHARS as MAX_GLOB_CHARS
from oncue.globs import compiled as compiled_glob
from oncue.globs import glob_regex
from oncue.protocol.records import Event
from oncue.quantities import size_bytes
from oncue.rules.matching.fields import MISSING, Get
from oncue.rules.matching.regex import compile_regex, measured

SHOWN_CHARS = 200
Check = Callable[[Any], bool]
TEXT_OPERATORS = ("prefix", "suffix", "glob", "regex")
COMPARE = {"gt": operator.gt, "ge": operator.ge, "lt": operator.lt, "le": operator.le}
SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


class Leaf:
    """One condition.

    `equals` (one of these scalars) and `prefix` are necessary, for the index. `items` (values that
    the event's is compared with) and `program_size` (of its regular expression) are for its cost.
    """

    __slots__ = ("check", "equals", "get", "items", "path", "prefix", "program_size", "wanted")

    def __init__(
        self,
        path: str,
        get: Get,
        check: Check,
        wanted: str,
        equals: tuple[Any, ...] | None = None,
        prefix: str = "",
        items: int = 1,
        program_size: int = 0,
    ) -> None:
        self.path, self.get, self.check, self.wanted = path, get, check, wanted
        self.equals, self.prefix, self.items, self.program_size = equals, prefix, items, program_size

    def test(self, event: Event) -> bool:
        return self.check(self.get(event))

    def describe(self) -> str:
        return f"{self.path} {self.wanted}"

    def found(self, event: Event) -> str:
        return show(self.get(event))


class ConditionGroup:
    __slots__ = ("members", "mode", "test")

    def __init__(self, mode: str, members: Sequence[Leaf | ConditionGroup]) -> None:
        self.mode, self.members = mode, tuple(members)
        tests = [m.test for m in members]
        if mode == "not":
            self.test: Callable[[Event], bool] = lambda event: not all(t(event) for t in tests)
        elif mode == "any":
            self.test = lambda event: any(t(event) for t in tests)
        else:
            self.test = lambda event: all(t(event) for t in tests)

    def describe(self) -> str:
        inside = " , ".join(m.describe() for m in self.members)
        return f"{self.mode}({inside})"

    @property
    def wanted(self) -> str:
        return {"any": "at least one of them", "all": "all of them", "not": "that they do not all hold"}[self.mode]

    def found(self, event: Event) -> str:
        return "; ".join(f"{m.describe()}: {'yes' if m.test(event) else 'no'}" for m in self.members)


Condition = Leaf | ConditionGroup


def show(value: Any) -> str:
    """Return a value in one line for people."""
    text = "nothing" if value is MISSING else repr(value)
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…"


# ---------------------------------------- operators: value in the rule file -> Check


def equal(wanted: Any) -> Check:
    if isinstance(wanted, bool):
        return lambda value: value is wanted
    if isinstance(wanted, str):
        return lambda value: type(value) is str and value == wanted
    if isinstance(wanted, (list, dict)):
        return lambda value: _same(value, wanted)
    return lambda value: value == wanted and not isinstance(value, bool)


def _same(a: Any, b: Any) -> bool:
    """Compare by JSON equality, in which true is not 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(v, b[k]) for k, v in a.items())
    return bool(a == b)


def one_of(wanted: list[Any]) -> Check:
    texts = frozenset(w for w in wanted if type(w) is str)
    checks = [equal(w) for w in wanted if type(w) is not str]

    def check(value: Any) -> bool:
        if type(value) is str:
            return value in texts
        return any(c(value) for c in checks)

    return check


def compare(op: str, wanted: Any) -> Check:
    """Return a comparison with a number, size or RFC 3339 time. Raises ValueError."""
    test, limit = COMPARE[op], bound(op, wanted)

    def later(value: Any) -> bool:
        found = parse_time(value) if isinstance(value, str) else None
        return found is not None and test(found, limit)

    def check(value: Any) -> bool:
        kind = type(value)
        return (kind is int or kind is float) and test(value, limit)

    return later if isinstance(limit, datetime) else check


def bound(op: str, wanted: Any) -> int | float | datetime:
    """Return the number or time that a comparison is with. Raises ValueError."""
    takes = f"`{op}` takes a number, a size like 1MB, or a time like 2026-01-31T12:00:00Z"
    if isinstance(wanted, str):
        try:
            return parse_time(wanted) or size_bytes(wanted)
        except ValueError as e:
            raise ValueError(f"{e}; {takes}") from None
    if isinstance(wanted, bool) or not isinstance(wanted, (int, float)) or wanted != wanted:
        raise ValueError(takes)
    return wanted


def parse_time(text: str) -> datetime | None:
    """Parse an RFC 3339 time or date as an aware datetime (default zone UTC).

    None: the text is neither.
    """
    if not (10 <= len(text) <= 40 and text[4] == "-" and text[:4].isdigit()):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class TextTest(NamedTuple):
    """The test of a glob or a regular expression.

    `program_size`: instructions of the compiled expression; 0: the test needs none.
    """

    check: Check
    program_size: int


def glob(pattern: str) -> TextTest:
    """Return the test of a glob. Raises Invalid."""
    if len(pattern) > MAX_GLOB_CHARS:
        glob_regex(pattern)  # raises
    if (plain := _plain_glob(pattern)) is not None:
        return TextTest(plain, 0)
    prefix, suffix = literal_prefix(pattern), literal_suffix(pattern)
    expression = measured(lambda: compiled_glob(pattern))
    fullmatch = expression.fullmatch

    def check(value: Any) -> bool:
        return type(value) is str and value.startswith(prefix) and value.endswith(suffix) and _safely(fullmatch, value)

    return TextTest(check, expression.programsize)


def _plain_glob(pattern: str) -> Check | None:
    """Return the test of a glob that needs no regular expression, else None.

    Two usual forms have only stars, in which nothing can be wrong. 10,000 regular expressions take
    a second to compile, and do not fit the CPU cache.
    """
    prefix, suffix = literal_prefix(pattern), literal_suffix(pattern)
    if pattern == f"{prefix}**/*{suffix}" and prefix[-1:] in ("", "/") and "/" not in suffix:
        least = len(prefix) + len(suffix)  # the usual form: any folder, this ending
        return lambda v: type(v) is str and len(v) >= least and v.startswith(prefix) and v.endswith(suffix)
    return _below(prefix, *ends) if (ends := _named(pattern, prefix)) is not None else None


def _named(pattern: str, prefix: str) -> tuple[str, str] | None:
    """Return (a, b) of a glob `prefix**/a*b` without other special characters."""
    folders, name = pattern[len(prefix) : len(prefix) + 3], pattern[len(prefix) + 3 :]
    a, star, b = name.partition("*")
    plain = folders == "**/" and prefix[-1:] in ("", "/") and star and "/" not in name and not _MAGIC & set(a + b)
    return (a, b) if plain else None


def _below(prefix: str, a: str, b: str) -> Check:
    """Return the test of `prefix**/a*b`."""
    least = len(a) + len(b)

    def check(value: Any) -> bool:
        if type(value) is not str or not value.endswith(b) or not value.startswith(prefix):
            return False
        start = value.rfind("/") + 1
        return start >= len(prefix) and len(value) - start >= least and value.startswith(a, start)

    return check


def regex(pattern: str) -> TextTest:
    """Return the test of a regular expression. Raises Invalid."""
    expression = compile_regex(pattern)
    search = expression.search
    return TextTest(lambda value: type(value) is str and _safely(search, value), expression.programsize)


def _safely(test: Callable[[bytes], Any], value: str) -> bool:
    """Search in UTF-8 bytes.

    RE2's conversion of positions to characters costs four times the search.
    """
    try:
        return test(value.encode()) is not None
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8, so no pattern matches it
        return False


_MAGIC = frozenset("*?[]{},\\")


def literal_prefix(pattern: str) -> str:
    """Return the common prefix of all paths that match the glob."""
    end = next((i for i, char in enumerate(pattern) if char in _MAGIC), len(pattern))
    return pattern[:end]


def literal_suffix(pattern: str) -> str:
    """Return the common suffix of all matching paths; "" unless it follows a star."""
    start = next((i for i in range(len(pattern), 0, -1) if pattern[i - 1] in _MAGIC), 0)
    starred = start and pattern[start - 1] == "*" and not _MAGIC & set(pattern[:start].replace("*", ""))
    whole_folders = pattern[max(start - 2, 0) : start] == "**"  # `**/x` may stand for x alone
    return pattern[start:] if starred and not whole_folders else ""
