"""Globs as regular expressions for google-re2 (linear time: a hostile pattern or path cannot hold up the process).

    *       any characters but /            ?       one character but /
    **      whole folders, none included    [a-c]   one of these; [!a-c] one but these (never /)
    {a,b}   a or b, may be nested           \\x      the character x as it is

`**` is special only as a whole part between slashes (`**/*.h5`, `raw/**`); elsewhere it is `*`. A pattern has to match
the whole path. Names that begin with a dot are nothing special.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from oncue.errors import Invalid

MAX_CHARS = 1_000
_ROOTED = re.compile(r"(?:\.?/)+")
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_/")


def glob_regex(pattern: str) -> str:
    """The regular expression (RE2 syntax, for `fullmatch`) that means the same as the glob.

    Raises Invalid, naming the column: an unclosed bracket or brace, a backslash at the end, a pattern too long."""
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
    """The glob as a compiled google-re2 expression; use its `fullmatch`. Raises Invalid."""
    import re2  # an endpoint does without it

    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(glob_regex(pattern), options)
    except re2.error as e:
        raise Invalid(
            f"the glob {pattern!r} cannot be used: {e}", remedy="see `[...]` in it: is a range reversed?"
        ) from None


def never_relative(pattern: str) -> str | None:
    """Of a glob that no relative path matches, since it begins with / or ./: the rest, which would. None: it may match."""
    rooted = _ROOTED.match(pattern)
    return pattern[rooted.end() :] if rooted else None


def max_depth(pattern: str) -> int | None:
    """How many parts between slashes a matching path has at most; None: no bound."""
    parts = pattern.split("/")
    return None if "**" in parts or "{" in pattern else len(parts)


def _stars(pattern: str, i: int) -> tuple[str, int]:
    """The expression for the stars at i, and how many characters of the pattern it stands for."""
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
    end = pattern.find("]", start + 1)  # a ] that comes first is meant as itself
    if end < 0 or "/" in pattern[start:end]:
        raise _wrong(pattern, i, "a bracket that is not closed", "write \\[ for the character itself")
    inside = "".join(c if c == "-" or c in _PLAIN else _literal(c) for c in pattern[start:end])
    return (f"[^/{inside}]" if start == i + 2 else f"[{inside}]"), end + 1 - i


def _literal(char: str) -> str:
    return char if char in _PLAIN or ord(char) > 127 else f"\\x{ord(char):02x}"


def _wrong(pattern: str, at: int, what: str, remedy: str) -> Invalid:
    return Invalid(f"the glob {pattern!r} has {what} at column {at + 1}", remedy=remedy, column=at + 1)
