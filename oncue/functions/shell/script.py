"""Scripts of shell functions: `${...}` becomes a reference to a variable.

A value is never part of the script: it is in an environment variable, which the script refers to.
So no value can become code, whatever it holds.

    cp ${data.path} "$HOME/${data.name}.bak"      the script
    cp "${_oncue_1}" "$HOME/${_oncue_2}.bak"      what the shell reads

Outside of quotes a reference is quoted, so that it stays one word. Where a shell, or the program
that it starts, would read the value as code, a reference is refused: in backticks, in arithmetic,
in `eval`, in the script of `sh -c`, of ssh, awk or sed. In single quotes and quoted here documents
there are no variables. `$${` is the characters `${`, for the shell's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

VARIABLE = "_oncue_"
MOST_CHARS = 100_000
MOST_DEPTH = 100  # of $(...) in one another
_HEREDOC = re.compile(r"<<(-?)[ \t]*(?:'([^'\n]+)'|\"([^\"\n]+)\"|(\\?)([\w./-]+))")
_SHELLS = frozenset(("sh", "bash", "dash", "ash", "ksh", "zsh", "csh", "tcsh", "fish", "su", "python", "python3"))
_ONE_LINERS = frozenset(("perl", "ruby", "node", "Rscript", "osascript", "php", "lua"))
_CODE = frozenset(("eval", "let", "trap", "alias", "ssh", "rsh"))
_EDITORS = frozenset(("sed", "awk", "gawk", "mawk", "nawk"))
_NUMERIC = frozenset(("-eq", "-ne", "-lt", "-le", "-gt", "-ge"))
_TAKE_A_WORD = frozenset(("-v", "-F", "-f", "-E", "--assign"))  # options of awk, before its program
_ENDS_COMMAND = frozenset(";&|\n()")
_SUBSCRIPT = re.compile(r"[A-Za-z_]\w*\[[^\]]*\Z")


class ScriptError(ValueError):
    """A reference where no value can stand safely.

    `remedy` says what to write instead.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


def with_variables(script: str, names: Collection[str]) -> tuple[str, dict[str, str]]:
    """Return (what the shell reads, name -> its variable) of the names that are used.

    Raises ScriptError.
    """
    if len(script) > MOST_CHARS:
        raise ScriptError(
            f"the script has {len(script):,} characters; at most {MOST_CHARS:,}", "put it in a file, and run that"
        )
    if "\0" in script:
        raise ScriptError("the script has a NUL character", "remove it")
    return _Scanner(script, names).scan()


def in_text(text: str, values: Callable[[str], str], names: Collection[str]) -> str:
    """Replace the references of a text that no shell reads."""
    pattern = _references(names)
    return pattern.sub(lambda m: values(m[1]) if m[1] is not None else "${", text)


def _references(names: Collection[str]) -> re.Pattern[str]:
    """Return a pattern of `$${` and `${name}`; group 1 is the name."""
    longest_first = sorted(names, key=len, reverse=True)
    alternatives = "|".join(map(re.escape, longest_first)) or r"(?!)"
    return re.compile(r"\$\$\{|\$\{\s*(" + alternatives + r")\s*\}")


class _Command:
    """The words of a command so far, as far as they decide who reads the next one."""

    def __init__(self) -> None:
        self.words: list[tuple[str, bool]] = []  # (text, True if it has a reference)
        self.word = ""
        self.referred = False

    def end_word(self) -> None:
        if not self.word:
            return
        if self.word in _NUMERIC and self.is_test and self.words[-1][1]:
            raise _as_number()
        self.words.append((self.word, self.referred))
        self.word, self.referred = "", False

    def refer(self, name: str) -> None:
        """Note a reference in the present word. Raises ScriptError where it would be code."""
        self.referred = True
        before = [text.strip("'\"") for text, _ in self.words]
        programs = [text.rsplit("/", 1)[-1] for text in before]
        last = before[-1] if before else ""
        if self.is_test and last in _NUMERIC:
            raise _as_number()
        if _SUBSCRIPT.match(self.word):
            raise ScriptError(f"${{{name}}} is in the subscript of an array, which a shell evaluates", _BY_ARGUMENT)
        reader = next((p for i, p in enumerate(programs) if _reads_code(p, before[i + 1 :])), "")
        if reader:
            raise ScriptError(
                f"{reader} would read the value of ${{{name}}} as code", _REMEDIES.get(reader, _BY_ARGUMENT)
            )

    @property
    def is_test(self) -> bool:
        """True inside of [[ ... ]]."""
        return any(text == "[[" for text, _ in self.words)

    @property
    def quotes(self) -> bool:
        """True for `printf %q`, whose output another shell reads as one word."""
        return [text.strip("'\"") for text, _ in self.words[:2]] == ["printf", "%q"]


_BY_ARGUMENT = "give it as an argument: sh -c 'wc -l \"$1\"' sh ${data.path}"
_REMEDIES = {
    "ssh": 'quote it for the other shell: ssh host wc -l "$(printf %q ${data.path})"',
    "eval": "leave eval out: the value is one word",
} | dict.fromkeys(_EDITORS, "awk -v x=${data.n} '{print x}' takes it as a value")


def _as_number() -> ScriptError:
    return ScriptError("[[ evaluates the operands of -eq, -lt and the like", "write [ ... -eq ... ], which does not")


def _reads_code(program: str, words: list[str]) -> bool:
    """Return True if a program reads the word after these as code."""
    last = words[-1] if words else ""
    if program in _SHELLS:
        return re.fullmatch(r"-\w*c", last) is not None and (program == "su" or _are_options(words))
    if program in _ONE_LINERS:
        return re.fullmatch(r"-\w*[eEr]", last) is not None and _are_options(words)
    return program in _CODE or (program in _EDITORS and _is_program(words))


def _are_options(words: list[str]) -> bool:
    """Return True if these are options of a shell or interpreter, before its script."""
    takes_a_word = False
    for word in words:
        if not takes_a_word and not word.startswith(("-", "+")):
            return False
        takes_a_word = not takes_a_word and word in ("-o", "+o", "-O", "+O", "-W", "-X", "-I")
    return True


def _is_program(words: list[str]) -> bool:
    """Return True if the word after these, of a sed or awk, is its program."""
    if words and words[-1] in ("-e", "--expression", "--source"):
        return True
    if words and words[-1] in _TAKE_A_WORD - {"-E"}:
        return False
    taken = False
    for word in words:
        if taken:
            taken = False
        elif word in ("-e", "-f", "--expression", "--file"):
            return False
        elif word in _TAKE_A_WORD and word != "-E":
            taken = True
        elif not word.startswith("-"):
            return False
    return True


class _Scanner:
    """One pass over a script. `_levels` are the open quotes and parentheses."""

    def __init__(self, script: str, names: Collection[str]) -> None:
        self._text, self._at = script, 0
        self._reference = _references(names)
        self._out: list[str] = []
        self.variables: dict[str, str] = {}
        self._levels: list[tuple[str, _Command]] = [("", _Command())]  # "", '"', "(" and "((" for arithmetic
        self._heredocs: list[tuple[str, bool, bool]] = []  # (delimiter, quoted, tabs stripped)

    def scan(self) -> tuple[str, dict[str, str]]:
        while self._at < len(self._text):
            if self._level == '"':
                self._in_double_quotes()
            else:
                self._outside()
        self._command.end_word()
        return "".join(self._out), self.variables

    @property
    def _level(self) -> str:
        return self._levels[-1][0]

    @property
    def _command(self) -> _Command:
        return self._levels[-1][1]

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
        if any(level == "((" for level, _ in self._levels):
            raise ScriptError(
                f"${{{name}}} is in arithmetic, where a shell evaluates what a value says",
                "compute outside of the script: ${data.n + 1} in a rule",
            )
        for _, command in reversed(self._levels):
            command.refer(name)
            if command.quotes:
                break
        variable = self.variables.setdefault(name, f"{VARIABLE}{len(self.variables) + 1}")
        self._out.append(f"${{{variable}}}" if quoted else f'"${{{variable}}}"')
        self._word("\0")

    def _dollar(self, quoted: bool) -> None:
        """Handle a `$`: a reference, a command, arithmetic, or the shell's own."""
        text, at = self._text, self._at
        if found := self._reference.match(text, at):
            self._at = found.end()
            if found[1] is None:
                self._out.append("${")
                self._word("${")
            else:
                self._refer(found[1], quoted)
        elif text.startswith("$((", at):
            self._open("((", 3)
        elif text.startswith("$(", at):
            self._open("(", 2)
        elif text.startswith("$'", at) and not quoted:
            self._literal(r"(?s)\$'(?:[^'\\]|\\.)*'?", "$'...'")
        else:
            self._word(self._take())

    def _open(self, level: str, size: int) -> None:
        if len(self._levels) > MOST_DEPTH:
            raise ScriptError(f"the script has more than {MOST_DEPTH} parentheses in one another", "make it simpler")
        self._word(self._take(size))
        self._levels.append((level, _Command()))

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

    def _in_double_quotes(self) -> None:
        char = self._text[self._at]
        if char == '"':
            self._take()
            _, inner = self._levels.pop()
            self._word(inner.word + '"')
            self._command.referred |= inner.referred
        elif char == "\\":
            self._word(self._take(2))
        elif char == "$":
            self._dollar(quoted=True)
        elif char == "`":
            self._literal(r"(?s)`(?:[^`\\]|\\.)*`?", "backticks")
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
            self._levels.append(('"', _Command()))
        elif char == "$":
            self._dollar(quoted=False)
        elif char == "`":
            self._literal(r"(?s)`(?:[^`\\]|\\.)*`?", "backticks")
        elif char == "#" and not self._command.word:
            self._comment()
        elif char == "<" and self._heredoc():
            pass
        elif char in " \t":
            self._command.end_word()
            self._take()
        elif char in _ENDS_COMMAND:
            self._end_command(char)
        else:
            self._word(self._take())

    def _end_command(self, char: str) -> None:
        self._command.end_word()
        level = self._level
        if char in "&|" and self._command.is_test:  # [[ a && b ]]
            self._take()
            return
        if char == "(":
            self._open("((" if self._text.startswith("((", self._at) else "(", 1)
            return
        if char == ")" and level:
            closing = 2 if level == "((" and self._text.startswith("))", self._at) else 1
            self._take(closing)
            self._levels.pop()
            self._word(")")
            return
        self._levels[-1] = (level, _Command())
        self._take()
        if char == "\n":
            self._heredoc_bodies()

    def _comment(self) -> None:
        end = self._text.find("\n", self._at)
        comment = self._text[self._at : end if end >= 0 else len(self._text)]
        self._out.append(comment)
        self._at += len(comment)

    # ------------------------------------------------------------ here documents

    def _heredoc(self) -> bool:
        """Take the start of a here document. False if there is none."""
        if self._text.startswith("<<<", self._at):
            self._take(3)
            return True
        found = _HEREDOC.match(self._text, self._at)
        if found is None or any(level == "((" for level, _ in self._levels):
            return False
        delimiter = found[2] or found[3] or found[5]
        self._heredocs.append((delimiter, not found[5] or bool(found[4]), bool(found[1])))
        self._out.append(found[0])
        self._at = found.end()
        self._command.end_word()
        return True

    def _heredoc_bodies(self) -> None:
        """Take the bodies of the here documents that the last line has begun."""
        line = self._text[self._text.rfind("\n", 0, self._at - 1) + 1 : self._at]
        words = {word.rsplit("/", 1)[-1] for word in re.findall(r"[\w./-]+", line)}
        reader = next(iter(sorted(words & (_SHELLS | _ONE_LINERS | _CODE))), "")
        for delimiter, quoted, stripped in self._heredocs:
            tabs = r"\t*" if stripped else ""
            end = re.compile(rf"(?ms)^{tabs}{re.escape(delimiter)}$").search(self._text, self._at)
            body = self._text[self._at : end.end() if end else len(self._text)]
            if quoted:
                self._literal(rf"(?s).{{{len(body)}}}", "a here document with a quoted delimiter")
                continue
            stop = self._at + len(body)
            while self._at < stop:
                char = self._text[self._at]
                if char == "\\":
                    self._take(2)
                elif char == "`":
                    self._literal(r"(?s)`(?:[^`\\]|\\.)*`?", "backticks")
                elif char == "$" and (found := self._reference.match(self._text, self._at)):
                    self._at = found.end()
                    if found[1] is None:
                        self._out.append("${")
                    else:
                        self._in_heredoc(found[1], reader)
                elif self._text.startswith("$((", self._at):
                    self._literal(r"(?s)\$\(\(.*?\)\)", "arithmetic")
                else:
                    self._take()
        self._heredocs.clear()

    def _in_heredoc(self, name: str, reader: str) -> None:
        if reader:
            raise ScriptError(f"{reader} would read the value of ${{{name}}} as code", _BY_ARGUMENT)
        variable = self.variables.setdefault(name, f"{VARIABLE}{len(self.variables) + 1}")
        self._out.append(f"${{{variable}}}")
