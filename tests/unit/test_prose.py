"""Docstrings in oncue/ begin with one short line on what the object is or does."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "oncue"

# A clause, a pronoun or a verb of speech, where the noun or the verb of the object is due.
CLAUSES = re.compile(
    r"(What|Whether|Who|Whose|Whom|Which|Where|When|How|Why|To whom|From where|Those|That|All that|Only what"
    r"|Of|By|Behind|Here|There|Then|It|Told|Is|Are|Was|Does|Has|Can|Not)\b"
)

MOST_CHARACTERS = 80  # of a first line


def first_lines(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line number and the first line of each docstring."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text.split("\n", 1)[0]


def clauses(source: str) -> list[tuple[int, str]]:
    return [(line, text) for line, text in first_lines(source) if CLAUSES.match(text)]


def in_package() -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield f"oncue/{path.relative_to(PACKAGE).as_posix()}", path.read_text("utf-8")


def test_docstrings_begin_with_a_noun_or_a_verb() -> None:
    found = [f"{name}:{line}: {text}" for name, source in in_package() for line, text in clauses(source)]

    assert not found, "rewrite these first lines of docstrings:\n" + "\n".join(found)


def test_first_lines_of_docstrings_are_short() -> None:
    found = [
        f"{name}:{line}: {len(text)} characters: {text}"
        for name, source in in_package()
        for line, text in first_lines(source)
        if len(text) > MOST_CHARACTERS
    ]

    assert not found, "shorten these first lines of docstrings:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("first_line", "is_clause"),
    [
        ("What the server knows of the endpoint.", True),
        ("Whether the agent is connected.", True),
        ("Told by the log: the record is durable.", True),
        ("Return True if the agent is connected.", False),
        ("Offsets of the partitions.", False),
        ("Canonical form of a glob.", False),
    ],
)
def test_clauses_are_found(first_line: str, is_clause: bool) -> None:
    source = f'class A:\n    def f(self):\n        """{first_line}\n\n        Whose detail follows.\n        """\n'

    assert clauses(source) == ([(3, first_line)] if is_clause else [])
