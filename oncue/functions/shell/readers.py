"""Words of a shell's command: read as data, or by somebody as code.

A list of programs cannot be complete. It has those that scripts in science use: shells, languages
with one-liners, schedulers, and the builtins of shells that evaluate what a word says.
"""

from __future__ import annotations

import re

_SHELLS = frozenset(("sh", "bash", "dash", "ash", "ksh", "mksh", "zsh", "csh", "tcsh", "fish"))
_BY_VARIABLE = re.compile(r"(?i)\$\{?\w*(?:sh|shell|python|perl|ruby|julia)\}?")  # $SHELL -c
#: Programs that read code after an option, which no other word but options precedes.
_AFTER_OPTION = {
    **dict.fromkeys(("python", "pypy", "ipython"), r"-\w*c"),
    **dict.fromkeys(("perl", "ruby"), r"-\w*[eE]"),
    "node": r"-\w*[ep]|--eval|--print",
    **dict.fromkeys(("R", "Rscript"), r"-e"),
    "julia": r"-[eE]|--eval|--print",
    "octave": r"--eval",
    "matlab": r"-r|-batch",
    "php": r"-r",
    **dict.fromkeys(("lua", "osascript", "gnuplot"), r"-e"),
    "env": r"-\w*S|--split-string",
}
#: Programs that read code after an option, wherever it stands.
_AFTER_ANY = {
    **dict.fromkeys(("su", "runuser", "script", "flock", "sg"), r"-\w*c|--command|--session-command"),
    **dict.fromkeys(("sbatch", "mapfile", "readarray"), r"--wrap|-C"),
    "sed": r"-\w*e|--expression",
    **dict.fromkeys(("awk", "gawk", "mawk", "nawk"), r"-e|--source"),
}
_CODE = frozenset(("eval", "let", "trap", "alias", "ssh", "rsh"))
_CODE_BUILTINS = frozenset(("complete", "compgen", "bind", "coproc", "watch"))
_SCHEDULERS = frozenset(("sbatch", "qsub", "bsub", "crontab"))  # they read scripts from their input
_INPUT_BUILTINS = frozenset(("source", ".", "at", "batch"))
_LANGUAGES = _SHELLS | frozenset(_AFTER_OPTION) - {"env"}
_EDITORS = frozenset(("sed", "awk", "gawk", "mawk", "nawk"))
_NAMES = frozenset(("unset", "read", "mapfile", "readarray", "getopts"))  # builtins whose words are names of variables
_DECLARE = frozenset(("declare", "typeset", "local", "readonly", "export", "integer"))
_TESTS = frozenset(("[", "test", "[["))
_NUMERIC = frozenset(("-eq", "-ne", "-lt", "-le", "-gt", "-ge"))
_TAKE_A_WORD = frozenset(("-o", "+o", "-O", "+O", "-W", "-X", "-I"))  # options of shells and languages
_AWK_TAKES_A_WORD = frozenset(("-v", "-F", "-f", "--assign"))
_BEFORE_COMMAND = frozenset(
    ("then", "do", "else", "elif", "if", "while", "until", "{", "!", "time", "command", "builtin", "exec")
)
#: Variables whose values shells and languages run.
CODE_VARIABLES = frozenset(("BASH_ENV", "ENV", "PS4", "PROMPT_COMMAND", "PERL5OPT"))
_QUOTING = re.compile(r"['\"\\]")
_REDIRECTS = re.compile(r"\d*(?:<<<|[<>])(?!\()")
_FROM_TEXT = re.compile(r"\d*<<<|<\(")

_FIRST, _LAST = 20, 200  # words of a long command that decide

BY_ARGUMENT = "give it as an argument: sh -c 'wc -l \"$1\"' sh ${data.path}"
_OUTSIDE = "compute outside of the script: ${data.n + 1} in a rule"
_REMEDIES = {
    "ssh": 'quote it for the other shell: ssh host wc -l "$(printf %q ${data.path})"',
    "eval": "leave eval out: the value is one word",
} | dict.fromkeys(_EDITORS, "awk -v x=${data.n} '{print x}' takes it as a value")


class ScriptError(ValueError):
    """A reference where no value can stand safely.

    `remedy` says what to write instead.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


class ShellCommand:
    """The words of a command so far, as far as they decide who reads the next one.

    `array`: it is in the parentheses of `a=(...)`. `quoted`: it is text in double quotes.
    `reader`: who reads all as code, "" for nobody.
    """

    def __init__(self, array: bool = False, quoted: bool = False, reader: str = "") -> None:
        self.words: list[str] = []  # without quotes
        self.word = ""
        self.is_test = False  # inside of [[ ... ]]
        self._at = -1  # index of the word that names the command
        self._array, self._quoted, self._reader = array, quoted, reader
        self._referred, self._last_referred = False, False

    def end_word(self) -> int:
        """Take the present word to its end.

        Return 1 if it begins a `case`, -1 if it ends one.
        """
        if not self.word:
            return 0
        if self.word in _NUMERIC and self.is_test and self._last_referred:
            raise _as_number()
        word = self.word
        self.words.append(_QUOTING.sub("", word))
        self._last_referred = self._referred
        self.word, self._referred = "", False
        names_command = self._at < 0 and not _precedes_command(self.words)
        if names_command:
            self._at = len(self.words) - 1
        self.is_test = (self.is_test and word != "]]") or (names_command and word == "[[")
        return {"case": 1, "esac": -1}.get(word, 0) if names_command else 0

    def join(self, inner: ShellCommand) -> None:
        """Add what stood in double quotes to the present word."""
        self.word += inner.word + '"'
        self._referred |= inner._referred

    @property
    def quotes(self) -> bool:
        """True for `printf %q`, whose output another shell reads as one word."""
        return self.words[:2] == ["printf", "%q"]

    @property
    def ends_group(self) -> bool:
        """True for the end of a loop or group, whose input all its commands read."""
        return bool(self.words) and self.words[0] in ("done", "}", "fi", "esac", ")")

    def reader_of_input(self) -> str:
        """Return who reads a here document of this command as code, "" for nobody."""
        return _reader_of_input(self._near())

    def refer(self, name: str, shell: str) -> None:
        """Note a reference in the present word. Raises ScriptError where it would be code."""
        self._referred = True
        words = self._near()
        last = words[-1] if words else ""
        if self.is_test and last in _NUMERIC:
            raise _as_number()
        if last in _NUMERIC and shell in ("ksh", "zsh") and any(word in _TESTS for word in words):
            raise ScriptError(f"[ of {shell} evaluates the operands of {last}", "use bash")
        if (in_subscript(self.word) and not self._quoted) or (self._array and in_subscript(f"a{self.word}")):
            raise ScriptError(f"${{{name}}} is in the subscript of an array, which a shell evaluates", _OUTSIDE)
        if self.word.partition("=")[0] in CODE_VARIABLES and "=" in self.word:
            raise ScriptError(f"a shell evaluates {self.word}${{{name}}}", "give it a fixed value")
        reader = self._reader or _reader(words, self.word, self._at)
        if reader:
            raise ScriptError(
                f"{reader} would read the value of ${{{name}}} as code", _REMEDIES.get(reader, BY_ARGUMENT)
            )

    def _near(self) -> list[str]:
        """Return the words that decide, a bounded number of them."""
        return self.words if len(self.words) <= _FIRST + _LAST else self.words[:_FIRST] + self.words[-_LAST:]


def in_subscript(word: str) -> bool:
    """Return True if the end of a word is in the subscript of an array."""
    return word.count("[") > word.count("]") and re.match(r"\w+\[", word) is not None


def _as_number() -> ScriptError:
    return ScriptError("[[ evaluates the operands of -eq, -lt and the like", "write [ ... -eq ... ], which does not")


def _program(word: str) -> str:
    """Return a program without its folder and version: python for /usr/bin/python3.11."""
    if _BY_VARIABLE.fullmatch(word):
        return "sh"
    name = word.rsplit("/", 1)[-1]
    return re.sub(r"(?<=[a-zA-Z])-?[\d.]+\Z", "", name)


def _precedes_command(words: list[str]) -> bool:
    """Return True if the last word stands before the one that names the command."""
    if words[0] == "function" and len(words) <= 2:
        return True
    return words[-1] in _BEFORE_COMMAND or re.match(r"\w+=", words[-1]) is not None


def _reader_of_input(words: list[str]) -> str:
    """Return who reads the input of a command as code, "" for nobody."""
    plain = []
    for i, word in enumerate(words):
        if not _REDIRECTS.match(word) and not (i and _REDIRECTS.fullmatch(words[i - 1])):
            plain.append(word)
    for i, program in enumerate(map(_program, plain)):
        rest = plain[i + 1 :]
        if program in _LANGUAGES and (
            _are_options(rest) or rest[0] == "-" or any(r[:1] == "-" and "s" in r for r in rest)
        ):
            return program
        if program in _SCHEDULERS | _CODE or (program in _INPUT_BUILTINS and i == 0):
            return program
    return ""


def _reader(words: list[str], word: str, command_at: int) -> str:
    """Return who would read the next part of a word as code; "" for nobody."""
    word = _QUOTING.sub("", word)
    last = words[-1] if words else ""
    if _FROM_TEXT.match(word) or (not word and _FROM_TEXT.fullmatch(last)):
        return _reader_of_input(words)
    if _REDIRECTS.match(word) or (not word and _REDIRECTS.fullmatch(last)):
        return ""
    for i, program in enumerate(map(_program, words)):
        after = words[i + 1 :]
        if program in ("ssh", "rsh") and words[i - 1 : i] in (["-e"], ["--rsh"]):  # of rsync
            continue
        if _reads_code(program, after, word) or (i == command_at and _builtin_reads(program, after, word)):
            return program
    return ""


def _builtin_reads(program: str, words: list[str], word: str) -> bool:
    """Return True if a builtin reads the word as code, or as a variable's name.

    Shells evaluate the subscript of such a name.
    """
    if program in _DECLARE:
        return "=" not in word or program == "integer" or any(re.match(r"-\w*i", w) for w in words)
    if program in _TESTS:
        return words[-1:] in (["-v"], ["-R"]) and "]]" not in words
    if program == "printf":
        return words == ["-v"] or (not words and word.startswith("-v"))
    if program == "wait":
        return words[-1:] == ["-p"]
    return program in _NAMES or program in _CODE_BUILTINS


def _reads_code(program: str, words: list[str], word: str) -> bool:
    """Return True if a program reads the present word, after these words, as code."""
    if program in _SHELLS:
        return not word.startswith("-") and _are_options(words) and any(re.fullmatch(r"-\w*c", w) for w in words)
    if program in _CODE or (program in _EDITORS and _is_editors_program(words)):
        return True
    option = _AFTER_ANY.get(program) or (_AFTER_OPTION.get(program) if _are_options(words) else None)
    return option is not None and _follows(option, words, word)


def _follows(option: str, words: list[str], word: str) -> bool:
    """Return True if the word follows such an option, or is one with its value."""
    if words and re.fullmatch(option, words[-1]):
        return True
    return re.match(rf"(?:{option})=?", word) is not None


def _are_options(words: list[str]) -> bool:
    """Return True if these are options of a shell or interpreter, before its script."""
    takes_a_word = False
    for word in words:
        if not takes_a_word and not word.startswith(("-", "+")):
            return False
        takes_a_word = not takes_a_word and word in _TAKE_A_WORD
    return True


def _is_editors_program(words: list[str]) -> bool:
    """Return True if the word after these, of a sed or awk, is its program."""
    if words and words[-1] in _AWK_TAKES_A_WORD:
        return False
    taken = False
    for word in words:
        if taken:
            taken = False
        elif word in ("-e", "-f", "--expression", "--file"):
            return False
        elif word in _AWK_TAKES_A_WORD:
            taken = True
        elif not word.startswith("-"):
            return False
    return True
