"""CEL conditions (`when`), compiled, with an upper bound of their cost.

`compile_cel(text) -> Cel`, `Cel.test(event) -> bool | str` (a text is the error),
`Cel.longest()`: the time that an evaluation may take (cel_cost.py). An evaluation holds
the interpreter and cannot be stopped, so what may be dear runs in a process of its own
(oncue/rules/evaluation/).

Uses Google's cel-expr-python, not common-expression-language. Measured in November 2026
(docs/decisions.md, "CEL"): a small event takes 12 µs (the other: 10), one of 300 fields 121 µs
(430). A loop of 200 x 200 x 200 stops at its budget of 10,000 iterations within 4 ms; the other
held the interpreter for 5 to 275 s and could not be stopped. Nesting is capped at 32, and misspelt
names are errors at deploy. Both have wheels for CPython 3.11 to 3.13 on Linux and macOS, x86-64 and
arm64.

A condition sees `data`, `event` (all attributes, such as `event.type`), and id, source, subject,
time. Numbers of different types compare and calculate as people expect (cel_numbers.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from oncue.errors import Invalid
from oncue.protocol.records import Event
from oncue.rules.matching.cel_cost import UNBOUNDED, cost_s
from oncue.rules.matching.cel_numbers import number_environment, within_64_bits
from oncue.rules.matching.cel_tree import Tree, parse_tree, paths_of
from oncue.rules.matching.fields import ATTRIBUTES

MAX_CHARS = 2_000
NAMES = ("data", "event", "id", "source", "subject", "time")


class Cel:
    """One compiled condition."""

    __slots__ = ("_expression", "_uses", "text")

    def __init__(self, text: str, expression: Any, uses: frozenset[str]) -> None:
        self.text, self._expression, self._uses = text, expression, uses

    def test(self, event: Event) -> bool | str:
        try:
            answer = self._expression.eval(data=self._activation(event))
            kind, value = answer.type().name(), answer.value()
        except (MemoryError, RecursionError):  # neither true nor false: a dead letter says so
            raise
        except Exception as e:  # errors of the library and of conversion (a lone surrogate ...)
            return _reason(str(e))
        if kind == "BOOL":
            return bool(value)
        return _reason(str(value)) if kind == "ERROR" else f"the condition gives {kind.lower()}, not true or false"

    def paths(self) -> list[str]:
        """Return the paths into the event that the condition reads."""
        tree = self._tree()
        return paths_of(tree) if tree is not None else []

    def longest(self) -> Callable[[int], float]:
        """Return the longest time (s) of an evaluation, as a function.

        Its argument is the size of an event (bytes). inf: no bound is known.
        """
        tree = self._tree()
        return lambda event_bytes: cost_s(tree, self._uses, event_bytes) if tree is not None else UNBOUNDED

    def _tree(self) -> Tree | None:
        """Return the syntax tree; None: its form is not known."""
        try:
            return parse_tree(self._expression.serialize())
        except ValueError:
            return None

    def _activation(self, event: Event) -> dict[str, Any]:
        uses = self._uses
        out: dict[str, Any] = {name: getattr(event, name) for name in uses if name != "event"}
        if "data" in uses:
            out["data"] = within_64_bits(event.data)
        if "event" in uses:
            out["event"] = {n: v for n in ATTRIBUTES if (v := getattr(event, n)) is not None} | event.extensions
        return out


@lru_cache(maxsize=1)
def _environment() -> Any:
    from cel_expr_python import cel  # 15 MB of C++ that only rules with `when` need

    kinds = dict.fromkeys(NAMES, cel.Type.DYN) | {"id": cel.Type.STRING, "source": cel.Type.STRING}
    return number_environment(cel, kinds)


def compile_cel(text: str) -> Cel:
    """Compile a condition.

    Raises Invalid: not CEL, unknown names, too long or deep, or its type is not bool.
    """
    if len(text) > MAX_CHARS:
        raise Invalid(
            f"the condition has {len(text)} characters", remedy=f"at most {MAX_CHARS}; move it into the function"
        )
    try:
        expression = _environment().compile(text)
    except Exception as e:
        raise Invalid(
            f"the condition {_short(text)} is not CEL: {_reason(str(e))}", remedy=_hint(text, str(e))
        ) from None
    kind = expression.return_type().name()
    if kind not in ("BOOL", "DYN"):
        raise Invalid(f"the condition {_short(text)} gives {kind.lower()}, not true or false", remedy="compare it")
    return Cel(text, expression, frozenset(n for n in NAMES if re.search(rf"\b{n}\b", text)))


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")


def _reason(text: str) -> str:
    """Return the library's message in one line, without its status words."""
    text = text.split("\n")[0]
    text = re.sub(r"^[A-Z_]+: (ERROR: <input>:\d+:(\d+): )?", lambda m: f"column {m[2]}: " if m[2] else "", text)
    return re.sub(r" (\(in container ''\)|\[[A-Z_]+\](?: None)?)", "", text).strip()


def _hint(text: str, reason: str) -> str:
    if "undeclared reference" in reason:
        return f"it can use {', '.join(NAMES)}; the event's type is event.type"
    return "see the language at https://cel.dev"
