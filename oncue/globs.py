"""Globs, translated to regular expressions for google-re2.

google-re2 matches in linear time, so that a hostile pattern or path cannot block the process.

    *       any characters but /            ?       one character but /
    **      zero or more folders            [a-c]   one of these; [!a-c] none of these, nor /
    {a,b}   a or b, may be nested           \\x      the character x itself

`**` is special only as a whole part between slashes (`**/*.h5`, `raw/**`); elsewhere it means `*`.
A pattern must match the whole path. Names that begin with a dot are not special.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from oncue.errors import Invalid

MAX_CHARS = 1_000
MEMORIES = (64 << 10, 256 << 10, 1 << 20, 8 << 20)  # bytes of an expression and its cache; more is not faster
_ROOTED = re.compile(r"(?:\.?/)+")
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_/")


def glob_regex(pattern: str) -> str:
    """Translate a glob to a regular expression (RE2 syntax, for `fullmatch`).

    Raises Invalid, which names the column, for an unclosed bracket or brace and for a backslash at
    the end; also for a pattern over MAX_CHARS.
    """
    if len(pattern) > MAX_CHARS:
        raise Invalid(f"the glob {pattern[:40]!r}... has {len(pattern)} characters", remedy=f"at most {MAX_CHARS}")
    out, i, depth = ["(?s)"], 0, 0
    while i < len(pattern):
        char = pattern[i]
        piece, step = char, 1
        if char == "*":
            piece, step = _stars(pattern, i)
        elif char == "?":
            piece = "[^/]"
        elif char == "[":
            piece, step = _bracket(pattern, i)
        elif char == "{":
            piece, depth = "(?:", depth + 1
        elif char == "}" and depth:
            piece, depth = ")", depth - 1
        elif char == "," and depth:
            piece = "|"
        elif char == "\\":
            if i + 1 == len(pattern):
                raise _wrong(pattern, i, "a backslash at the end", "write \\\\ for a backslash")
            piece, step = _literal(pattern[i + 1]), 2
        else:
            piece = _literal(char)
        out.append(piece)
        i += step
    if depth:
        raise _wrong(pattern, pattern.rindex("{"), "a brace that is not closed", "write \\{ for the character itself")
    return "".join(out)


@lru_cache(maxsize=4096)
def compiled(pattern: str) -> Any:
    """Return the glob as a compiled google-re2 expression, for `fullmatch`.

    Raises Invalid.
    """
    import re2  # not installed on endpoints

    try:
        return compiled_text(glob_regex(pattern))
    except re2.error as e:
        raise Invalid(
            f"the glob {pattern!r} cannot be used: {e}", remedy="see `[...]` in it: is a range reversed?"
        ) from None


def compiled_text(regex: str, most_bytes: int = MEMORIES[-1]) -> Any:
    """Return a regular expression, compiled by google-re2 within so much memory.

    It gets the least of MEMORIES in which it can be compiled: a hostile text fills what it has,
    and a rule file has thousands of expressions. Raises re2.error.
    """
    import re2  # not installed on endpoints

    for memory in MEMORIES:
        options = re2.Options()
        options.log_errors = False
        options.max_mem = min(memory, most_bytes)
        try:
            return re2.compile(regex, options)
        except re2.error:
            if memory >= most_bytes:
                raise
    raise AssertionError("the last of MEMORIES is the most")


def never_relative(pattern: str) -> str | None:
    """Return the glob without a leading / or ./, which no relative path matches.

    None if the glob has no such prefix.
    """
    rooted = _ROOTED.match(pattern)
    return pattern[rooted.end() :] if rooted else None


def max_depth(pattern: str) -> int | None:
    """Return the largest number of path parts that can match; None: no limit."""
    parts = pattern.split("/")
    return None if "**" in parts or "{" in pattern else len(parts)


def _stars(pattern: str, i: int) -> tuple[str, int]:
    """Return the regular expression for the stars at i, and their length."""
    end = i
    while end < len(pattern) and pattern[end] == "*":
        end += 1
    opens = i == 0 or pattern[i - 1] in "/{,"
    if end - i != 2 or not opens:
        return "[^/]*", end - i
    if end == len(pattern) or pattern[end] in ",}":
        return ".*", 2
    return ("(?:.*/)?", 3) if pattern[end] == "/" else ("[^/]*", 2)


def _bracket(pattern: str, i: int) -> tuple[str, int]:
    start = i + 2 if pattern[i + 1 : i + 2] in ("!", "^") else i + 1
    end = pattern.find("]", start + 1)  # a ] in first place is the character itself
    if end < 0 or "/" in pattern[start:end]:
        raise _wrong(pattern, i, "a bracket that is not closed", "write \\[ for the character itself")
    inside = "".join(c if c == "-" or c in _PLAIN else _literal(c) for c in pattern[start:end])
    return (f"[^/{inside}]" if start == i + 2 else f"[{inside}]"), end + 1 - i


def _literal(char: str) -> str:
    return char if char in _PLAIN or ord(char) > 127 else f"\\x{ord(char):02x}"


def _wrong(pattern: str, at: int, what: str, remedy: str) -> Invalid:
    return Invalid(f"the glob {pattern!r} has {what} at column {at + 1}", remedy=remedy, column=at + 1)
