"""Strict YAML 1.2 with positions: text -> tree of Nodes.

Each Node has its line and column, from 1. Built from ruamel.yaml's events, so no objects are
constructed: no tags, no aliases, capped size and depth. Plain scalars follow the core schema of
YAML 1.2 (`on` is a text, `0o17` a number). Errors are collected in Problems, so that the author
sees all of them at once.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from oncue.errors import RuleFileError

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 32
SHOWN = 20  # problems in one error
MANY = 1_000  # problems after which the rest of a file is not read
CHARS = 500  # of one message

_INT = re.compile(r"[-+]?[0-9]{1,4000}")
_OCTAL, _HEX = re.compile(r"0o[0-7]{1,100}"), re.compile(r"0x[0-9a-fA-F]{1,100}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS = {w: v for v, words in ((None, "null Null NULL ~"), (True, "true True TRUE"), (False, "false False FALSE"))
          for w in words.split()} | {"": None}  # fmt: skip
_STAR = re.compile(r"(?:^|[:\[{,-])\s*(\*[^\s,\]}]*)")
_QUOTES = "put it in quotes"


class Node:
    """One value of a document with its position.

    `value` is a scalar, a list of Nodes, or a dict of key -> Node. `keys` are the positions of a
    mapping's keys.
    """

    __slots__ = ("column", "keys", "line", "value")

    def __init__(self, value: Any, line: int, column: int) -> None:
        self.value, self.line, self.column = value, line, column
        self.keys: dict[str, tuple[int, int]] = {}

    def plain(self) -> Any:
        """The value without positions."""
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        return self.value

    def kind(self) -> str:
        """Return the name of the value's type for people."""
        return kind_name(self.value)

    def at_key(self, key: str) -> tuple[int, int]:
        return self.keys.get(key, (self.line, self.column))


class FileProblem(msgspec.Struct, frozen=True, order=True):
    line: int
    column: int
    message: str
    remedy: str = ""


class Problems:
    """Errors of one file, with positions."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: list[FileProblem] = []

    def add(self, place: Node | tuple[int, int], message: str, remedy: str = "") -> None:
        line, column = (place.line, place.column) if isinstance(place, Node) else place
        self.found.append(FileProblem(line, column, message[:CHARS], remedy[:CHARS]))

    def check(self) -> None:
        """Raises one RuleFileError for all;

        `details["problems"]` has the first 20 as data.
        """
        if not self.found:
            return
        self.found = sorted(set(self.found))
        first, rest = self.found[0], self.found[1:SHOWN]
        more = [f"{self.file}:{p.line}:{p.column}: {p.message}" + (f" ({p.remedy})" if p.remedy else "") for p in rest]
        if len(self.found) > SHOWN:
            more.append(f"... and {len(self.found) - SHOWN} more")
        raise RuleFileError(
            "\n".join([first.message, *more]),
            remedy=first.remedy,
            file=self.file,
            line=first.line,
            column=first.column,
            problems=[msgspec.to_builtins(p) for p in self.found[:SHOWN]],
            count=len(self.found),
        )


def kind_name(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "a text", bool: "true or false", int: "a whole number"}
    return "nothing" if value is None else names.get(type(value), "a number")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the remedy for an unknown word."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    if not close:
        close = [k for k in known if k.lower() == word.lower()]
    return (
        f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known[:SHOWN])}" if known else "there are none"
    )


def read(text: str | bytes, problems: Problems) -> Node | None:
    """Return the tree of the one document in the text; None: a problem was added."""
    decoded = _decode(text, problems)
    if decoded is None:
        return None
    builder = _Builder(problems)
    try:
        root = builder.document(YAML(typ="safe", pure=True).parse(decoded))
    except MarkedYAMLError as e:
        _explain_syntax(decoded, e, problems)
        return None
    except (YAMLError, ValueError, RecursionError) as e:
        line, column = _special(decoded)
        problems.add((line, column), f"this is not YAML: {str(e).splitlines()[0]}")
        return None
    if root is None and not problems.found:
        problems.add((1, 1), "the file is empty", "a rule file has `triggers:` and `rules:`")
    return root


def _decode(text: str | bytes, problems: Problems) -> str | None:
    if len(text) > MAX_BYTES:
        problems.add((1, 1), f"the file has {len(text):,} bytes; at most {MAX_BYTES:,}", "split it into several files")
        return None
    if isinstance(text, str):
        return text
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = text.count(b"\n", 0, e.start) + 1
        column = e.start - (text.rfind(b"\n", 0, e.start) + 1) + 1
        problems.add((line, column), f"the byte 0x{text[e.start]:02x} is not UTF-8", "save the file as UTF-8")
        return None


def _special(text: str) -> tuple[int, int]:
    """Return the position of the first character that YAML does not allow."""
    for number, line in enumerate(text.splitlines(), 1):
        for column, char in enumerate(line, 1):
            if not (char == "\t" or " " <= char <= "~" or char == "\x85" or char >= "\xa0"):
                return number, column
    return 1, 1


class _Stop(Exception):
    """Stops reading after a fatal error or too many."""


class _Builder:
    def __init__(self, problems: Problems) -> None:
        self.problems = problems

    def document(self, events: Iterator[Any]) -> Node | None:
        root, documents = None, 0
        try:
            for event in events:
                name = type(event).__name__
                if name == "DocumentStartEvent":
                    documents += 1
                    if documents > 1:
                        self.problems.add(_place(event), "a second document", "one document a file: remove this `---`")
                        break
                elif name.startswith(("Scalar", "MappingStart", "SequenceStart", "Alias")):
                    root = self.node(event, events, 1)
        except _Stop:
            return None
        empty = root is not None and root.value is None and not self.problems.found
        return None if empty else root

    def node(self, event: Any, events: Iterator[Any], depth: int) -> Node:
        name, place = type(event).__name__, _place(event)
        if depth > MAX_DEPTH:
            self.problems.add(place, f"nested deeper than {MAX_DEPTH} levels")
            raise _Stop
        node = Node(None, *place)
        if name == "AliasEvent":
            message = f"*{event.anchor} begins with an unquoted *, which YAML reads as an alias"
            self.problems.add(place, message, f'{_QUOTES}: "*{event.anchor}"')
            raise _Stop
        if event.anchor:
            self.problems.add(place, f"&{event.anchor} is a YAML anchor, and rule files have none", "write it out")
        if getattr(event, "tag", None) and str(event.tag) != "!":
            self.problems.add(place, f"the tag {event.tag} is not allowed", "remove it")
        if name == "ScalarEvent":
            node.value = event.value if event.style else scalar(event.value)
        elif name == "SequenceStartEvent":
            node.value = []
            while type(child := next(events)).__name__ != "SequenceEndEvent":
                node.value.append(self.node(child, events, depth + 1))
        else:
            self.mapping(node, events, depth)
        return node

    def mapping(self, node: Node, events: Iterator[Any], depth: int) -> None:
        node.value = {}
        while type(event := next(events)).__name__ != "MappingEndEvent":
            key = self.node(event, events, depth + 1)
            value = self.node(next(events), events, depth + 1)
            text = key.value
            if text is True and getattr(event, "value", "").lower() == "true":
                remedy = "was it `on`, rewritten by a YAML 1.1 tool? write on:"
                self.problems.add(key, "the key is the value true, not a text", remedy)
                continue
            if not isinstance(text, str):
                if isinstance(text, (list, dict)):
                    self.problems.add(key, f"a key is a text, not {key.kind()}", "put ${...} and {...} in quotes")
                    continue
                text = getattr(event, "value", str(text))
            if text in node.value:
                line = node.keys[text][0]
                self.problems.add(key, f"the key {text[:60]!r} is here twice (first in line {line})", "remove one")
                if len(self.problems.found) > MANY:
                    raise _Stop
                continue
            node.value[text] = value
            node.keys[text] = (key.line, key.column)


def _place(event: Any) -> tuple[int, int]:
    return event.start_mark.line + 1, event.start_mark.column + 1


def scalar(text: str) -> Any:
    """Convert a plain scalar by the core schema of YAML 1.2."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if _HEX.fullmatch(text):
        return int(text[2:], 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    if text.lower().lstrip("+-") in (".inf", ".nan"):
        return float(text.replace(".", ""))
    return text


def _explain_syntax(text: str, error: MarkedYAMLError, problems: Problems) -> None:
    """Add a problem: a plain message for usual mistakes, else the parser's."""
    mark = error.problem_mark or error.context_mark
    number, column = (mark.line, mark.column) if mark else (0, 0)
    lines = text.split("\n")
    line = lines[number] if number < len(lines) else ""
    if column and line[column - 1 : column + 1] == "${":
        message = "an unquoted ${...} inside braces is read as a mapping"
        problems.add((number + 1, column), message, f'{_QUOTES}: "${{...}}"')
    elif line[column : column + 1] == "\t" or "\t" in line[: len(line) - len(line.lstrip())]:
        problems.add((number + 1, line.index("\t") + 1), "a tab; YAML indents with spaces", "replace it by spaces")
    elif "alias" in f"{error.context} {error.problem}" and (star := _STAR.search(line)):
        message = f"{star[1]} begins with an unquoted *, which YAML reads as an alias"
        problems.add((number + 1, star.start(1) + 1), message, f'{_QUOTES}: "{star[1]}"')
    else:
        problems.add((number + 1, column + 1), f"this is not YAML: {error.problem or error.context}")
