"""Selection: the files and folders that a trigger's globs select."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate

import msgspec

from oncue.globs import compiled, compiled_text, glob_regex, max_depth

EVERYTHING = ("**/*", "**")
#: Names that programs give to files that are not complete yet. Ignored whatever their case.
IGNORED = (
    ".*",  # rsync, Vim, LibreOffice, lftp, and the like
    "*~",
    "~$*",  # Microsoft Office
    "*#",  # Emacs
    "*.tmp",
    "*.temp",
    "*.part",  # Firefox, wget2, KDE
    "*.partial",  # rclone, Aspera, Edge
    "*.filepart",  # WinSCP
    "*.crdownload",  # Chrome
    "*.opdownload",
    "*.download",  # Safari
    "*.gstmp",  # gsutil, gcloud
    "*._copying_",  # Hadoop
    "*.inprogress",
    "*.incomplete",
    "*.!qb",  # BitTorrent
    "*.!ut",
    "*.aria2",
    "*.swp",
    "*.swo",
    "*.swx",
)


class Selection(msgspec.Struct, frozen=True, array_like=True):
    """Globs, and how they are compared. Stored in the ledger as JSON (`text`)."""

    glob: str
    ignore: tuple[str, ...]
    any_case: bool = False
    #: é as one character and as two are alike (Unicode NFC and NFD). Older versions did not know.
    any_form: bool = False

    def excludes(self, folder: str, name: str) -> str:
        """Return why the file is not selected; "": it is."""
        for one in self.ignore:
            if not _selects(self._with("**/*", (one,), self.any_case or self.ignore == IGNORED), folder, name):
                return f"it is ignored (ignore: {one})"
        if _selects(self, folder, name):
            return ""
        path = f"{folder}/{name}" if folder else name
        why = f"the glob {self.glob} does not select it"
        if _selects(self._with(self.glob, (), True), folder, name):
            return f"{why}, since its case differs: `case: insensitive` would"
        return why if path.isascii() and self.glob.isascii() else f"{why}: {self.glob!a} and {path!a}"

    def _with(self, glob: str, ignore: tuple[str, ...], any_case: bool) -> Selection:
        return Selection(glob, ignore, any_case, self.any_form)

    @property
    def text(self) -> str:
        """The selection as JSON. As older versions wrote it, if it selects the same files."""
        plain = not self.any_case and (self.glob + "".join(self.ignore)).isascii()
        return msgspec.json.encode((self.glob, self.ignore) if plain else self).decode()

    def compile(self) -> tuple[Callable[[str, str], bool], Callable[[str], bool]]:
        """Compile the globs to (matches(folder, name), enter(folder)). Raises Invalid."""
        return _compile(self)


@lru_cache(maxsize=1_024)  # the triggers in force are read again with each deploy of anybody
def _compile(selection: Selection) -> tuple[Callable[[str, str], bool], Callable[[str], bool]]:
    """Compile the globs: see Selection.compile."""
    glob = _nfc(selection.glob) if selection.any_form else selection.glob
    ignore = tuple(map(_nfc, selection.ignore)) if selection.any_form else selection.ignore
    depth = max_depth(glob)
    if glob in EVERYTHING:
        by_name, by_path = None, None
    elif glob.startswith("**/*") and _plain(glob[4:]):
        by_name, by_path = _one([glob[3:]], selection.any_case), None
    else:
        by_name, by_path = None, _one([glob], selection.any_case)
    names = _one([i for i in ignore if "/" not in i], selection.any_case or selection.ignore == IGNORED)
    paths = _one([i for i in ignore if "/" in i], selection.any_case)
    any_form = selection.any_form

    def matches(folder: str, name: str) -> bool:
        if any_form:
            folder, name = _nfc(folder), _nfc(name)
        if names(name) or (by_name is not None and not by_name(name)):
            return False
        if by_path is None and paths is _nothing:
            return True
        path = f"{folder}/{name}" if folder else name
        return (by_path is None or by_path(path)) and not paths(path)

    def enter(folder: str) -> bool:
        if depth is not None and folder.count("/") + 2 > depth:
            return False
        parts = (_nfc(folder) if any_form else folder).split("/")
        if any(names(part) for part in parts):
            return False
        return not any(paths("/".join(parts[: i + 1])) for i in range(len(parts)))

    return matches, enter


def other_forms(text: str) -> set[str]:
    """Return the text in the other Unicode forms, which look the same."""
    return set() if text.isascii() else {unicodedata.normalize(form, text) for form in ("NFC", "NFD")} - {text}


read_selection = msgspec.json.Decoder(Selection).decode


def folders_to(folder: str) -> list[str]:
    """Return the folders on the way to this one, and itself: a, a/b, a/b/c."""
    return list(accumulate(folder.split("/"), lambda a, b: f"{a}/{b}")) if folder else []


def _selects(selection: Selection, folder: str, name: str) -> bool:
    matches, enter = selection.compile()
    return matches(folder, name) and all(map(enter, folders_to(folder)))


def _nfc(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _one(globs: list[str], any_case: bool) -> Callable[[str], bool]:
    """Return a function that is True for a text that matches any of the globs.

    `*.h5` and `.*` become plain comparisons: an expression costs microseconds for each file of a
    burst.
    """
    if not globs:
        return _nothing
    for glob in globs:
        compiled(glob)  # an error names the glob
    ending = [g for g in globs if g[:1] == "*" and _plain(g[1:])]
    starting = [g for g in globs if g[-1:] == "*" and _plain(g[:-1])]
    plain = {*ending, *starting}
    rest = [g for g in globs if g not in plain]
    ends, starts = tuple(g[1:] for g in ending), tuple(g[:-1] for g in starting)
    if any_case:
        ends, starts = tuple(map(str.lower, ends)), tuple(map(str.lower, starts))
    regex = "|".join(f"(?:{glob_regex(g)})" for g in rest)
    match = compiled_text(f"(?i){regex}" if any_case else regex).fullmatch if rest else None

    def fits(text: str) -> bool:
        if any_case:
            text = text.lower()
        return text.endswith(ends) or text.startswith(starts) or (match is not None and match(text) is not None)

    return fits


def _plain(text: str) -> bool:
    return bool(text) and not any(c in "*?[]{}\\/" for c in text)


def _nothing(text: str) -> bool:
    return False
