"""Expressions of `${...}`: a path with filters, and arithmetic.

    data.path | stem                             filters, one after the other
    data.name | regex('scan_([0-9]+)') | int     with arguments
    (data.frame + 1) * 2 | pad(4)                + - * / // %, with spaces around them

A filter belongs to the value before it: `data.n | int + 1` adds 1 to the number. Without spaces
`-`, `+` and the like are characters of a key, as they always were: data.run-id.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from oncue.rules.matching.filters import Filter, NoValue, make_filter, whole

MAX_CHARS = 2_000
MAX_DEPTH = 16  # of parentheses
MAX_PARTS = 64  # filters and operators

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>[0-9]+(?:\.[0-9]+)?)(?![\w.])
    |(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    |(?P<path>[A-Za-z_][^\s|()+*/%,"'.]*(?:\.(?:"(?:[^"\\]|\\.)*"|[^\s|()+*/%,"'.]+))*)
    |(?P<sign>//|[-+*/%|(),]))""",
    re.VERBOSE,
)
_PLAIN = re.compile(r'\w(?:[^\s"]|"(?:[^"\\]|\\.)*")*')  # as a path was always written
_BARE = re.compile(r"\w[\w.-]*")
_CALL = re.compile(r"([A-Za-z_]\w*)\s*(\(.*\))?", re.DOTALL)  # of a stripped text: linear in its length
_LEVELS = (("+", "-"), ("*", "/", "//", "%"))

Render = Callable[[Any], Any]  # source -> value, or NoValue
Atom = Callable[[str], Render]  # a path -> its Render. Raises ValueError


class Path(NamedTuple):
    text: str


class Piped(NamedTuple):
    value: Expression
    name: str
    filter: Filter


class Sum(NamedTuple):
    """Two values and the operator between them."""

    left: Expression
    operator: str
    right: Expression


class Number(NamedTuple):
    value: int | float


Expression = Path | Piped | Sum | Number


class Cost(NamedTuple):
    """Parts of an expression whose time grows with the event."""

    references: int = 0
    filters: int = 0
    program_size: int = 0  # of regular expressions

    def plus(self, other: Cost) -> Cost:
        references, filters, size = other
        return Cost(self.references + references, self.filters + filters, self.program_size + size)


NO_COST, PATH_COST = Cost(), Cost(references=1)


def parse(text: str) -> Expression:
    """Parse the text between `${` and `}`. Raises ValueError."""
    if _BARE.fullmatch(text):
        return Path(text)
    if (found := _simple(text)) is not None:
        return found
    if len(text) > MAX_CHARS:
        raise ValueError(f"the expression has {len(text):,} characters; at most {MAX_CHARS:,}")
    return _Parser(text).whole()


def normalized(text: str) -> str:
    """Return an expression with one space around each |."""
    return " | ".join(part.strip() for part in split_pipes(text))


def simple_path(expression: Expression) -> str:
    """Return the path of an expression that is a path with filters; "": it is none."""
    while isinstance(expression, Piped):
        expression = expression.value
    return expression.text if isinstance(expression, Path) else ""


def paths_of(expression: Expression) -> list[str]:
    """Return all paths in an expression."""
    match expression:
        case Path(text):
            return [text]
        case Piped(value):
            return paths_of(value)
        case Sum(left, _, right):
            return paths_of(left) + paths_of(right)
        case Number():
            return []


def cost(expression: Expression) -> Cost:
    match expression:
        case Piped(value, _, filter_):
            return cost(value).plus(Cost(filters=1, program_size=filter_.program_size))
        case Sum(left, _, right):
            return cost(left).plus(cost(right)).plus(Cost(references=1))
        case Path():
            return PATH_COST
        case Number():
            return NO_COST


def compile_expression(expression: Expression, atom: Atom) -> Render:
    """Return the function that evaluates an expression.

    Both raise ValueError.
    """
    match expression:
        case Path(text):
            return atom(text)
        case Number(value):
            return lambda source: value
        case Piped(inner, _, filter_):
            return _piped(compile_expression(inner, atom), filter_)
        case Sum(left, operator, right):
            return _calculated(compile_expression(left, atom), operator, compile_expression(right, atom))


def _piped(get: Render, filter_: Filter) -> Render:
    apply = filter_.apply
    if filter_.replaces_missing:
        return lambda source: apply(get(source))

    def piped(source: Any) -> Any:
        value = get(source)
        return value if type(value) is NoValue else apply(value)

    return piped


def _calculated(left: Render, operator: str, right: Render) -> Render:
    def calculated(source: Any) -> Any:
        a, b = left(source), right(source)
        for value in (a, b):
            if type(value) is NoValue:
                return value
            if type(value) is not int and type(value) is not float:
                raise ValueError(
                    f"`{operator}` is for numbers, not {type(value).__name__}: `| int` makes one of a text"
                )
        return calculate(operator, a, b)

    return calculated


def calculate(operator: str, a: int | float, b: int | float) -> int | float:
    """Return a number of at most 64 bits. Raises ValueError."""
    for number in (a, b):
        if isinstance(number, int):
            whole(number)
    if operator in ("/", "//", "%") and not b:
        raise ValueError("a division by 0")
    try:
        found = _OPERATORS[operator](a, b)
    except OverflowError:
        raise ValueError("the number is too large") from None
    return whole(found) if isinstance(found, int) else found


def _divided(a: Any, b: Any) -> Any:
    """Return a whole number if there is no remainder: 6 / 2 is 3."""
    return a // b if isinstance(a, int) and isinstance(b, int) and a % b == 0 else a / b


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": _divided,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
}


# ---------------------------------------------------------------- parsing


def _simple(text: str) -> Expression | None:
    """Parse a path with filters; None: it is more than that."""
    first, *filters = split_pipes(text)
    if not _PLAIN.fullmatch(first.strip()):
        return None
    if len(filters) > MAX_PARTS:
        raise ValueError(f"an expression has at most {MAX_PARTS} filters and operators")
    calls = [_CALL.fullmatch(part.strip()) for part in filters]
    if not all(calls):
        return None
    found: Expression = Path(first.strip())
    for call in calls:
        assert call is not None
        found = Piped(found, call[1], make_filter(call[1], _arguments(call[2] or "()"), call[2] is not None))
    return found


def _arguments(text: str) -> list[Any]:
    parser = _Parser(text)
    found = parser.arguments()
    parser.end()
    return found


def split_pipes(text: str) -> list[str]:
    """Split at each | that is not inside parentheses, nor in a quoted key."""
    if "(" not in text and '"' not in text:
        return text.split("|")
    parts, start, depth = [], 0, 0
    for at, char in outside_quotes(text):
        depth += (char == "(") - (char == ")")
        if char == "|" and depth <= 0:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


def outside_quotes(text: str, start: int = 0) -> Iterator[tuple[int, str]]:
    """Yield (position, character) of what is not in quotes.

    Quotes count inside parentheses, and where a key is quoted: data."a|b".
    """
    depth, quote, at = 0, "", start
    while at < len(text):
        char = text[at]
        if quote:
            if char == "\\":
                at += 1
            elif char == quote:
                quote = ""
        elif char in "'\"" and (depth > 0 or (char == '"' and text[at - 1 : at] == ".")):
            quote = char
        else:
            depth += (char == "(") - (char == ")")
            yield at, char
        at += 1


class _Parser:
    """Parser of one expression, by recursive descent."""

    def __init__(self, text: str) -> None:
        self._text, self._at, self._depth, self._parts = text, 0, 0, 0

    def whole(self) -> Expression:
        found = self._level(0)
        self.end()
        return found

    def end(self) -> None:
        """Raises ValueError unless all has been read."""
        if rest := self._text[self._at :].strip():
            raise ValueError(f"{rest[:40]!r} is not expected in ${{{self._text.strip()[:100]}}}")

    def _peek(self) -> tuple[str, str, int]:
        """Return (kind, text, end) of the next token; the kind "": there is none."""
        found = _TOKEN.match(self._text, self._at)
        return (found.lastgroup or "", found[found.lastgroup or 0], found.end()) if found else ("", "", self._at)

    def _next(self) -> tuple[str, str]:
        kind, text, self._at = self._peek()
        return kind, text

    def _take(self, *signs: str) -> str:
        """Read one of these signs; return "" if another token is next."""
        kind, text, end = self._peek()
        if kind != "sign" or text not in signs:
            return ""
        self._at = end
        return text

    def _level(self, level: int) -> Expression:
        if level == len(_LEVELS):
            return self._pipes()
        found = self._level(level + 1)
        while operator := self._take(*_LEVELS[level]):
            self._count()
            found = Sum(found, operator, self._level(level + 1))
        return found

    def _pipes(self) -> Expression:
        found = self._value()
        while self._take("|"):
            kind, name = self._next()
            if kind != "path":
                raise ValueError(f"a filter is missing after | in ${{{self._text.strip()[:100]}}}")
            self._count()
            given = self._peek()[:2] == ("sign", "(")
            found = Piped(found, name, make_filter(name, self.arguments() if given else [], given))
        return found

    def _value(self) -> Expression:
        kind, text = self._next()
        if kind == "number":
            return Number(_number(text))
        if kind == "path":
            return Path(text)
        if (kind, text) == ("sign", "-"):
            self._count()
            return Sum(Number(0), "-", self._pipes())
        if (kind, text) == ("sign", "("):
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise ValueError(f"parentheses are nested over {MAX_DEPTH} deep")
            found = self._level(0)
            self._depth -= 1
            if not self._take(")"):
                raise ValueError(f"a `)` is missing in ${{{self._text.strip()[:100]}}}")
            return found
        shown = self._text.strip()[:100]
        raise ValueError(f"{shown!r} is not a path into an event, such as data.size or subject, nor a sum of them")

    def arguments(self) -> list[Any]:
        """Return the arguments of a filter, in parentheses: texts and numbers."""
        self._take("(")
        found: list[Any] = []
        while not self._take(")"):
            if found and not self._take(","):
                raise ValueError(f"a `)` or a comma is missing in {self._text.strip()[:100]!r}")
            minus = self._take("-")
            kind, text = self._next()
            if kind == "text" and not minus:
                found.append(re.sub(rf"\\({text[0]})", r"\1", text[1:-1]))
            elif kind == "number":
                found.append(-_number(text) if minus else _number(text))
            else:
                raise ValueError(
                    f"arguments are texts in quotes and numbers, not {text or self._text[self._at :][:40]!r}"
                )
        return found

    def _count(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise ValueError(f"an expression has at most {MAX_PARTS} filters and operators")


def _number(text: str) -> int | float:
    return float(text) if "." in text else whole(int(text[:40]))
