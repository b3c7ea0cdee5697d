"""Strict YAML 1.2 with positions: text -> tree of Nodes.

Each Node has its line and column, from 1. Built from a parser's events, so no objects are
constructed: no tags, no aliases, capped size and depth. Plain scalars follow the core schema of
YAML 1.2 (`on` is a text, `0o17` a number). Errors are collected in Problems, so that the author
sees many of them at once.

The parser is libyaml, by PyYAML: 1 MB takes 0.2 s, 25 times less than a parser in Python.
libyaml takes three Unicode characters for line breaks, as YAML 1.1 did. Small files with those are
left to ruamel.yaml, as are all files where PyYAML has no libyaml. An endpoint's machine need not
have ruamel.yaml: there PyYAML's own parser reads the small files of an endpoint.
"""

from __future__ import annotations

import contextlib
import difflib
import heapq
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import msgspec

from oncue.errors import FileError, RuleFileError
from oncue.strict_yaml.disposal import dispose

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 32
SHOWN = 100  # problems in one error
MANY = 1_000  # problems after which the rest of a file is not read
SLOW_BYTES = 64 * 1024  # of a file that is left to the slow parser: 3 s
CHARS = 500  # of one message
WORDS = 20  # known words in one message
NEAR_CHARS = 60  # of a word that is compared with known ones; the comparison is quadratic
NEAR_WORDS = 500  # known words that one is compared with

_INT = re.compile(r"[-+]?[0-9]{1,4000}")
_OCTAL, _HEX = re.compile(r"0o[0-7]{1,100}"), re.compile(r"0x[0-9a-fA-F]{1,100}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS = {w: v for v, words in ((None, "null Null NULL ~"), (True, "true True TRUE"), (False, "false False FALSE"))
          for w in words.split()} | {"": None}  # fmt: skip
_STAR = re.compile(r"(?:^|[:\[{,-])\s*(\*[^\s,\]}]*)")
_BREAKS = re.compile("[\x85\u2028\u2029]")
_QUOTES = "put it in quotes"


_NO_KEYS: Mapping[str, tuple[int, int]] = MappingProxyType({})


class Node:
    """One value of a document with its position.

    `value` is a scalar, a list of Nodes, or a dict of key -> Node. `keys` are the positions of a
    mapping's keys.
    """

    __slots__ = ("column", "keys", "line", "value")

    def __init__(self, value: Any, line: int, column: int) -> None:
        self.value, self.line, self.column = value, line, column
        self.keys: Mapping[str, tuple[int, int]] = _NO_KEYS

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


class FileKind(msgspec.Struct, frozen=True):
    """Kind of file that users write: its error and the words of its messages."""

    error: type[FileError]
    plural: str
    content: str  # remedy for an empty file
    large: str  # remedy for a file that is too large


RULE_FILE = FileKind(
    RuleFileError, "rule files", "a rule file has `triggers:` and `rules:`", "split it into several files"
)


class FileProblem(msgspec.Struct, frozen=True, order=True):
    line: int
    column: int
    message: str
    remedy: str = ""


class Problems:
    """Errors of one file, with positions.

    A context manager: at its end, the tree is freed.
    """

    def __init__(self, file: str, limited: bool = True, kind: FileKind = RULE_FILE) -> None:
        """`limited`: limits of cost hold. They may be newer than a text in force."""
        self.file, self.limited, self.kind = file, limited, kind
        self.nodes: list[Node] = []  # of the tree
        self.conditions = 0  # of the current rule
        self.made: list[Any] = []  # rules
        self.found: list[FileProblem] = []

    def add(self, place: Node | tuple[int, int], message: str, remedy: str = "") -> None:
        """Add a problem.

        Raises the file's FileError if there are MANY: the rest of the file is not read.
        """
        line, column = (place.line, place.column) if isinstance(place, Node) else place
        self.found.append(FileProblem(line, column, message[:CHARS], remedy[:CHARS]))
        if len(self.found) >= MANY:
            self.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """Free the tree node by node, and after an error what was made of it."""
        if error is not None:
            traceback.clear_frames(trace)  # they refer to lists of nodes and rules
        for node in self.nodes:  # the outer ones first, while all of them are in use
            node.value = None
        dispose(self.nodes)
        if error is not None:
            dispose(self.made)
        self.made = []

    def check(self) -> None:
        """Raise one error of the file's kind for all.

        Its message and `details["problems"]` have the first 100.
        """
        if not self.found:
            return
        least = "at least " if len(self.found) >= MANY else ""
        self.found = sorted(set(self.found))
        first, rest = self.found[0], self.found[1:SHOWN]
        more = [f"{self.file}:{p.line}:{p.column}: {p.message}" + (f" ({p.remedy})" if p.remedy else "") for p in rest]
        if len(self.found) > SHOWN:
            more.append(f"... and {least}{len(self.found) - SHOWN} more")
        raise self.kind.error(
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
    """Return the remedy for an unknown word, at a bounded cost."""
    known = list(known)
    similar = known
    if len(known) > NEAR_WORDS:
        similar = list(islice((k for k in known if k[:2].lower() == word[:2].lower()), NEAR_WORDS))
    short = [k for k in similar if len(k) <= 2 * NEAR_CHARS]
    close = difflib.get_close_matches(word[:NEAR_CHARS], sorted(short), n=1)
    if not close:
        close = [k for k in short if k.lower() == word.lower()]
    if close:
        return f"did you mean {close[0]!r}?"
    shown = ", ".join(heapq.nsmallest(WORDS, known))
    return f"known: {shown}" + (" ..." if len(known) > WORDS else "") if known else "there are none"


def read(text: str | bytes, problems: Problems) -> Node | None:
    """Return the tree of the one document in the text; None: a problem was added."""
    decoded = _decode(text, problems)
    if decoded is None:
        return None
    unicode_break = _BREAKS.search(decoded)
    if unicode_break and len(decoded) > SLOW_BYTES:
        code = f"\\u{ord(unicode_break[0]):04x}"
        place = (decoded.count("\n", 0, unicode_break.start()) + 1, 1)
        problems.add(
            place, f"the line break {code} in a file over {SLOW_BYTES:,} bytes", f'write "{code}" in double quotes'
        )
        return None
    events, syntax_error, other_error = _parser(decoded, slow=bool(unicode_break))
    try:
        root = _Builder(problems).document(events)
    except syntax_error as e:
        _explain_syntax(decoded, e, problems)
        return None
    except (other_error, ValueError, RecursionError) as e:
        line, column = _special(decoded)
        problems.add((line, column), f"this is not YAML: {str(e).splitlines()[0]}")
        return None
    if root is None and not problems.found:
        problems.add((1, 1), "the file is empty", problems.kind.content)
    return root


class Scalar(NamedTuple):
    """One scalar of a text, with its characters' positions."""

    value: str
    style: str  # "", ", ', | or >
    start: int
    end: int
    line: int
    column: int


def scalars(text: str) -> Iterator[Scalar]:
    """Yield the scalars of a text in order, up to what is not YAML."""
    events, syntax_error, other_error = _parser(text, slow=_BREAKS.search(text) is not None)
    with contextlib.suppress(syntax_error, other_error, ValueError, RecursionError):
        for event in events:
            if type(event).__name__ == "ScalarEvent":
                start, end = event.start_mark, event.end_mark
                place = (start.index, end.index, start.line + 1, start.column + 1)
                yield Scalar(event.value, event.style or "", *place)


def _parser(text: str, slow: bool) -> tuple[Iterator[Any], type[Any], type[Any]]:
    """Return the text's events, the class of errors with a mark, and that of others."""
    if not slow:
        with contextlib.suppress(ImportError):  # PyYAML is missing, or was built without libyaml
            import yaml
            from yaml import CSafeLoader

            return yaml.parse(text, Loader=CSafeLoader), yaml.MarkedYAMLError, yaml.YAMLError
    try:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import MarkedYAMLError, YAMLError
    except ImportError:  # an endpoint's machine
        import yaml

        return yaml.parse(text, Loader=yaml.SafeLoader), yaml.MarkedYAMLError, yaml.YAMLError
    return YAML(typ="safe", pure=True).parse(text), MarkedYAMLError, YAMLError


def _decode(text: str | bytes, problems: Problems) -> str | None:
    if len(text) > MAX_BYTES:
        problems.add((1, 1), f"the file has {len(text):,} bytes; at most {MAX_BYTES:,}", problems.kind.large)
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
    """Makes Nodes of a parser's events.

    Their classes have the same names in both libraries.
    """

    def __init__(self, problems: Problems) -> None:
        self.problems, self.nodes = problems, problems.nodes

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
        name, mark = type(event).__name__, event.start_mark
        node = Node(None, mark.line + 1, mark.column + 1)
        self.nodes.append(node)
        if depth > MAX_DEPTH or event.anchor:
            self.refuse(event, node, depth)
        if name == "ScalarEvent":
            node.value = event.value if event.style else scalar(event.value)
        elif name == "SequenceStartEvent":
            node.value = children = []
            while type(child := next(events)).__name__ != "SequenceEndEvent":
                children.append(self.node(child, events, depth + 1))
        else:
            self.mapping(node, events, depth)
        if event.tag and str(event.tag) != "!":
            self.problems.add(node, f"the tag {event.tag} is not allowed", "remove it")
        return node

    def refuse(self, event: Any, node: Node, depth: int) -> None:
        """Add a problem for depth, alias or anchor. Raises _Stop unless it is an anchor."""
        if depth > MAX_DEPTH:
            self.problems.add(node, f"nested deeper than {MAX_DEPTH} levels")
            raise _Stop
        if type(event).__name__ == "AliasEvent":
            message = f"*{event.anchor} begins with an unquoted *, which YAML reads as an alias"
            self.problems.add(node, message, f'{_QUOTES}: "*{event.anchor}"')
            raise _Stop
        self.problems.add(
            node, f"&{event.anchor} is a YAML anchor, and {self.problems.kind.plural} have none", "write it out"
        )

    def mapping(self, node: Node, events: Iterator[Any], depth: int) -> None:
        values: dict[str, Node] = {}
        keys: dict[str, tuple[int, int]] = {}
        node.value, node.keys = values, keys
        while type(event := next(events)).__name__ != "MappingEndEvent":
            key = self.node(event, events, depth + 1)
            value = self.node(next(events), events, depth + 1)
            text = key.value
            if not isinstance(text, str):
                if text is True and event.value.lower() == "true":
                    remedy = "was it `on`, rewritten by a YAML 1.1 tool? write on:"
                    self.problems.add(key, "the key is the value true, not a text", remedy)
                    continue
                if isinstance(text, (list, dict)):
                    self.problems.add(key, f"a key is a text, not {key.kind()}", "put ${...} and {...} in quotes")
                    continue
                text = event.value
            if text in values:
                self.problems.add(
                    key, f"the key {text[:60]!r} is here twice (first in line {keys[text][0]})", "remove one"
                )
                continue
            values[text] = value
            keys[text] = (key.line, key.column)


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


def _explain_syntax(text: str, error: Any, problems: Problems) -> None:
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
