"""Scripts of shell functions: `${...}` becomes a reference to a variable.

A value is never part of the script: it is in an environment variable, which the script refers to.
So no value can become code, whatever it holds.

    cp ${data.path} "$HOME/${data.name}.bak"      the script
    cp "${_oncue_1}" "$HOME/${_oncue_2}.bak"      what the shell reads

Outside of quotes a reference is quoted, so that it stays one word. Where a shell, or the program
that it starts, would read the value as code, a reference is refused: in backticks, in arithmetic
(also that of `${a[...]}`), and in what readers.py knows. In single quotes and quoted here documents
there are no variables. `$${` is the characters `${`, for the shell's own. Where shells may read a
script differently, none of its references stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from oncue.functions.shell.readers import ScriptError, ShellCommand, in_subscript

VARIABLE = "_oncue_"
MOST_CHARS = 100_000
MOST_REFERENCES = 1_000
MOST_COMMANDS = 200  # before a here document that may read it
MOST_DEPTH = 30  # of $(...) and ${...} in one another
_HEREDOC = re.compile(r"""<<(-?)[ \t]*((?:'[^'\n]*'|"[^"\n]*"|\\[^\n]|[^\s'"\\<>|&;()`$])+)""")
_QUOTES = re.compile(r"['\"\\]")
_ENDS_COMMAND = frozenset(";&|\n()")
_OFFSET = re.compile(r"(?s)[!#]?(?:\w+(?:\[.*\])?|[@*]):(?![-=?+])")
_BACKTICKS = r"(?s)`(?:[^`\\]|\\.)*`?"


def with_variables(script: str, names: Collection[str], shell: str = "") -> tuple[str, dict[str, str]]:
    """Return (what the shell reads, name -> its variable) of the names that are used.

    `shell`: its name, "" for bash or sh. Raises ScriptError.
    """
    if len(script) > MOST_CHARS:
        raise ScriptError(
            f"the script has {len(script):,} characters; at most {MOST_CHARS:,}", "put it in a file, and run that"
        )
    if "\0" in script:
        raise ScriptError("the script has a NUL character", "remove it")
    return _Scanner(script, names, shell).scan()


def in_text(text: str, values: Callable[[str], str], names: Collection[str]) -> str:
    """Replace the references of a text that no shell reads."""
    pattern = _references(names)
    return pattern.sub(lambda m: values(m[1]) if m[1] is not None else "${", text)


def _references(names: Collection[str]) -> re.Pattern[str]:
    """Return a pattern of `$${` and `${name}`; group 1 is the name."""
    longest_first = sorted(names, key=len, reverse=True)
    alternatives = "|".join(map(re.escape, longest_first)) or r"(?!)"
    return re.compile(r"\$\$\{|\$\{\s*(" + alternatives + r")\s*\}")


@dataclass(slots=True)
class _Level:
    """An open quote or parenthesis: `"`, `(`, `((` for arithmetic, `{` of ${...}.

    `<` is a here document, "" the script itself. `quoted`: a `{` in double quotes. `cases`: how
    many `case` have no `esac` yet.
    """

    kind: str
    command: ShellCommand
    quoted: bool = False
    cases: int = 0

    @property
    def evaluates(self) -> bool:
        """True in arithmetic: in $((, the subscript of ${a[, the offset of ${x:."""
        word = self.command.word
        return self.kind == "((" or (
            self.kind == "{" and (in_subscript(word.lstrip("!#")) or bool(_OFFSET.match(word)))
        )


@dataclass(frozen=True, slots=True)
class _HereDocument:
    """A here document whose body follows the present line."""

    delimiter: str
    quoted: bool
    stripped: bool  # of tabs


class _Scanner:
    """One pass over a script. `_levels` are the open quotes and parentheses."""

    def __init__(self, script: str, names: Collection[str], shell: str) -> None:
        self._text, self._at = script, 0
        self._reference = _references(names)
        self._shell = shell
        self._out: list[str] = []
        self.variables: dict[str, str] = {}
        self._levels: list[_Level] = []
        self._commands: list[ShellCommand] = []
        self._line = 0  # index of the first command of this line
        self._heredocs: list[_HereDocument] = []
        self._references = 0
        self._unclear = ""  # where this scanner and a shell may disagree on what is quoted
        self._begin("")

    def scan(self) -> tuple[str, dict[str, str]]:
        while self._at < len(self._text):
            self._step()
        self._command.end_word()
        if len(self._levels) > 1 or self._heredocs:
            self._unclear = self._unclear or "a quote or a parenthesis that is not closed"
        if self.variables and self._unclear:
            raise ScriptError(
                f"the script has {self._unclear}, so that ${{{next(iter(self.variables))}}} may not stay one word",
                "write it in another way",
            )
        return "".join(self._out), self.variables

    def _step(self) -> None:
        kind = self._levels[-1].kind
        if kind in ('"', "<"):
            self._in_quotes(kind)
        elif kind == "{":
            self._in_braces()
        else:
            self._outside()

    @property
    def _command(self) -> ShellCommand:
        return self._levels[-1].command

    def _begin(self, kind: str, command: ShellCommand | None = None, quoted: bool = False) -> None:
        self._levels.append(_Level(kind, command or ShellCommand(), quoted))
        self._commands.append(self._command)

    def _take(self, count: int = 1) -> str:
        taken = self._text[self._at : self._at + count]
        self._out.append(taken)
        self._at += count
        return taken

    def _word(self, text: str) -> None:
        self._command.word += text

    # ------------------------------------------------------------ references

    def _refer(self, name: str, quoted: bool) -> None:
        """Write a reference, as one word."""
        if any(level.evaluates for level in self._levels):
            raise ScriptError(
                f"${{{name}}} is in arithmetic, where a shell evaluates what a value says",
                "compute outside of the script: ${data.n + 1} in a rule",
            )
        for level in reversed(self._levels):
            level.command.refer(name, self._shell)
            if level.command.quotes:
                break
        variable = self.variables.setdefault(name, f"{VARIABLE}{len(self.variables) + 1}")
        self._references += 1
        if self._references > MOST_REFERENCES:
            raise ScriptError(f"the script has more than {MOST_REFERENCES:,} references ${{{name}}}", "use a variable")
        self._out.append(f"${{{variable}}}" if quoted else f'"${{{variable}}}"')
        self._word("\0")

    def _dollar(self, quoted: bool) -> None:
        """Handle a `$`: a reference, a command, arithmetic, or the shell's own."""
        text, at = self._text, self._at
        if found := self._reference.match(text, at):
            self._at = found.end()
            if found[1] is not None:
                self._refer(found[1], quoted)
            else:
                self._out.append("${")
                self._word("${")
                self._begin("{", quoted=quoted)
        elif text.startswith("$((", at):
            self._open("((", 3)
        elif text.startswith("$(", at):
            self._open("(", 2)
        elif text.startswith("${", at):
            self._open("{", 2, quoted)
        elif text.startswith("$[", at):
            self._literal(r"\$\[(?:[^\[\]]|\[[^\]]*\])*\]?", "arithmetic")
        elif text.startswith("$'", at) and not quoted:
            self._literal(r"(?s)\$'(?:[^'\\]|\\.)*'?", "$'...'")
        else:
            self._word(self._take())

    def _open(self, kind: str, size: int, quoted: bool = False) -> None:
        if len(self._levels) > MOST_DEPTH:
            raise ScriptError(f"the script has more than {MOST_DEPTH} parentheses in one another", "make it simpler")
        is_array = kind == "(" and self._command.word.endswith("=")
        self._word(self._take(size))
        self._begin(kind, ShellCommand(array=is_array), quoted)

    def _close(self, size: int = 1) -> None:
        self._take(size)
        self._levels.pop()

    def _literal(self, pattern: str, what: str) -> None:
        """Take a part in which no reference can stand.

        The shell expands no variables in it, or its quotes are special.
        """
        found = re.compile(pattern).match(self._text, self._at)
        assert found is not None
        for reference in self._reference.finditer(found[0]):
            if reference[1] is not None:
                raise ScriptError(
                    f"${{{reference[1]}}} is in {what}, where no value can stand safely",
                    "write it outside of the quotes, as a word of its own; use $(...) in place of backticks",
                )
        self._out.append(self._reference.sub("${", found[0]))
        self._word(found[0])
        self._at = found.end()

    # ------------------------------------------------------------ the script

    def _in_quotes(self, kind: str) -> None:
        """Handle a character in double quotes, or in a here document."""
        char = self._text[self._at]
        if char == '"' and kind == '"':
            inner = self._command
            self._close()
            self._command.join(inner)
        elif char == "\\":
            self._word(self._take(2))
        elif char == "$":
            self._dollar(quoted=True)
        elif char == "`":
            self._literal(_BACKTICKS, "backticks")
        else:
            self._word(self._take())

    def _in_braces(self) -> None:
        """Handle a character of the shell's own ${...}."""
        char = self._text[self._at]
        if char == "}":
            self._close()
            self._word("}")
        elif char == "'" and self._levels[-1].quoted:
            self._unclear = self._unclear or "a ' in ${...} in double quotes"
            self._word(self._take())
        elif char in "\\'\"$`":
            self._outside()
        else:
            self._word(self._take())

    def _outside(self) -> None:
        char = self._text[self._at]
        if char == "\\":
            taken = self._take(2)
            self._word("" if taken == "\\\n" else taken)
        elif char == "'":
            self._literal(r"'[^']*'?", "single quotes")
        elif char == '"':
            self._take()
            self._begin('"', ShellCommand(quoted=True))
        elif char == "$":
            self._dollar(quoted=self._levels[-1].quoted)
        elif char == "`":
            self._literal(_BACKTICKS, "backticks")
        elif char == "#" and not self._command.word:
            self._comment()
        elif char == "<" and self._heredoc():
            pass
        elif char in " \t":
            self._end_word()
            self._take()
        elif char in _ENDS_COMMAND:
            self._end_command(char)
        else:
            self._word(self._take())

    def _end_word(self) -> None:
        if self._command.word:
            self._levels[-1].cases += self._command.end_word()

    def _end_command(self, char: str) -> None:
        if char != "(":  # it may stand in a word: a=( or <(
            self._end_word()
        level = self._levels[-1]
        if level.command.is_test:  # [[ a && ( b || c ) ]]
            self._take()
        elif char == "(":
            kind = "((" if self._text.startswith("((", self._at) else "("
            self._open(kind, len(kind))
        elif char == ")" and level.kind == "((" and not self._text.startswith("))", self._at):
            self._take()  # $((a) ; b): parentheses in $(...), no arithmetic
            level.kind = "("
            self._new_command()
        elif char == ")" and level.kind and level.cases <= 0:
            self._close(2 if level.kind == "((" else 1)
            self._word(")")
            if self._command.word.endswith("()"):  # the start of a function
                self._new_command()
        else:
            if char == ")" and level.cases <= 0:
                self._unclear = self._unclear or "a ) that nothing opens"
            self._new_command()
            self._take()
            if char == "\n":
                self._heredoc_bodies()

    def _new_command(self) -> None:
        level = self._levels[-1]
        level.command = ShellCommand()
        self._commands.append(level.command)

    def _comment(self) -> None:
        end = self._text.find("\n", self._at)
        comment = self._text[self._at : end if end >= 0 else len(self._text)]
        self._out.append(comment)
        self._at += len(comment)

    # ------------------------------------------------------------ here documents

    def _heredoc(self) -> bool:
        """Take the start of a here document or here string. False if there is none."""
        if self._text.startswith("<<<", self._at):
            self._word(self._take(3))
            return True
        if not self._text.startswith("<<", self._at) or any(level.kind == "((" for level in self._levels):
            return False
        found = _HEREDOC.match(self._text, self._at)
        if found is None:
            self._unclear = self._unclear or "a << whose end is not a plain word"
            return False
        delimiter = _QUOTES.sub("", found[2])
        self._heredocs.append(_HereDocument(delimiter, delimiter != found[2], bool(found[1])))
        self._out.append(found[0])
        self._at = found.end()
        self._end_word()
        return True

    def _reader_of_input(self) -> str:
        """Return who reads the here documents of this line as code, "" for nobody.

        Those of a loop or a group may be read by any command before.
        """
        line = self._commands[self._line :][-MOST_COMMANDS:]
        commands = self._commands if any(command.ends_group for command in line) else line
        return next(filter(None, (command.reader_of_input() for command in commands[-MOST_COMMANDS:])), "")

    def _heredoc_bodies(self) -> None:
        """Take the bodies of the here documents that the last line has begun."""
        bodies, self._heredocs = self._heredocs, []
        reader = self._reader_of_input() if bodies else ""
        self._line = len(self._commands) - 1
        for body in bodies:
            tabs = r"\t*" if body.stripped else ""
            end = re.compile(rf"(?m)^{tabs}{re.escape(body.delimiter)}$").search(self._text, self._at)
            stop = end.end() if end else len(self._text)
            if body.quoted:
                size = stop - self._at
                self._literal(rf"(?s).{{{size}}}", "a here document with a quoted delimiter")
                continue
            is_script = self._text.startswith("#!", self._at)
            self._begin("<", ShellCommand(reader=reader or ("the script in this here document" if is_script else "")))
            depth = len(self._levels)
            while self._at < stop:
                self._step()
            if len(self._levels) != depth or self._at != stop:
                self._unclear = self._unclear or "a parenthesis in a here document that is not closed"
            del self._levels[depth - 1 :]
