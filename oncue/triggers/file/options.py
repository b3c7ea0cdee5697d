"""Options of `kind: file`.

FileOptions are the keys in a rule file; FileSpec is their checked form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Literal

import msgspec

from oncue.errors import Invalid
from oncue.globs import never_relative
from oncue.protocol.codec import build_decoders
from oncue.protocol.event_types import FILE_EVENT
from oncue.quantities import duration_ms
from oncue.triggers.file.selection import IGNORED, Selection
from oncue.triggers.file.watch.base import CLOSED, RENAMED

MAX_IGNORE_CHARS = 16_384  # of all globs of `ignore`: 50 ms to compile
_BITS = {"close_write": CLOSED, "rename": RENAMED}


class ReadyOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Conditions for a complete file; all that are given must hold.

    `close_write`: its writer closed it. `rename`: it was renamed (or linked) to its name. `any`:
    one of these is enough. `stable`: it has not changed for so long since.
    """

    close_write: bool = False
    rename: bool = False
    any: tuple[Literal["close_write", "rename"], ...] = ()
    stable: str | int | float | None = None  # "2s"; a number is seconds


class FileOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of `kind: file` in a rule file.

    Globs match the path relative to `path`. An `ignore` glob without a slash matches the name of
    the file, or of a folder on the way to it.
    """

    path: str  # the folder
    glob: str = "**/*"
    ignore: tuple[str, ...] = IGNORED
    ready: ReadyOptions | None = None  # default: {any: [close_write, rename]}
    case: Literal["sensitive", "insensitive"] = "sensitive"  # of both globs
    #: `content`: as `changed`, but a file that fired under another name does not fire again.
    refire: Literal["changed", "never", "content"] = "changed"
    existing: bool = False  # files fire that exist when the trigger is first deployed
    #: `stop`: a chain of files that functions write ends (dispatcher/file_chains.py).
    loops: Literal["stop", "allow"] = "stop"
    #: Event fields that are relative to the folder and never begin with a slash.
    RELATIVE: ClassVar[tuple[str, ...]] = ("subject", "data.relative", "data.name", "data.stem")
    #: All fields of the data of its events, and their types.
    FIELDS: ClassVar[Mapping[str, type]] = {
        **dict.fromkeys(("path", "name", "stem", "folder", "relative", "trigger", "host", "cause"), str),
        "size": int,
        "mtime": float,
    }
    #: All values of a field that has few.
    VALUES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "cause": ("close_write", "rename", "stable", "rescan", "backfill")
    }
    #: Fields that are one part of a path: they have no slash.
    NAMES: ClassVar[tuple[str, ...]] = ("name", "stem")
    TYPE: ClassVar[str] = FILE_EVENT  # of its events

    symlinks: Literal["ignore", "files"] = "ignore"  # links to folders are never followed
    #: Interval of full scans; default: 5m, on network mounts 10s.
    rescan: str | int | float | None = None

    def __post_init__(self) -> None:
        """Check the options, so that a deploy refuses wrong ones."""
        try:
            read_options("", self)
        except Invalid as e:
            raise ValueError(f"{e.message} ({e.remedy})") from None


class FileSpec(msgspec.Struct, frozen=True):
    """Checked options."""

    root: Path
    required: int  # kinds of notices (watch/base.py)
    any: int
    stable_s: float
    never: bool  # refire: never
    content: bool  # refire: content
    existing: bool
    loops: bool  # loops: allow
    links: bool
    rescan_s: float  # 0: by the filesystem
    matches: Callable[[str, str], bool]  # (folder, name) -> the globs select the file
    enter: Callable[[str], bool]  # folder -> it may hold selected files
    selects: str  # Selection.text; a change selects other files

    @property
    def wants(self) -> str:
        """The conditions of `ready`, in words."""
        parts = [name for name, bit in _BITS.items() if self.required & bit]
        if self.any:
            parts.append(" or ".join(name for name, bit in _BITS.items() if self.any & bit))
        if self.stable_s:
            parts.append(f"stable for {self.stable_s:g} s")
        return " and ".join(parts)


def read_options(name: str, options: FileOptions) -> FileSpec:
    """Check the options. Raises Invalid, which names the trigger and the key."""
    place = f"trigger {name!r}: " if name else ""
    if not options.path or "\0" in options.path:
        raise Invalid(f"{place}path is not the name of a folder", remedy="write path: /data/2bm")
    ready = options.ready or ReadyOptions(any=("close_write", "rename"))
    stable_s = _seconds(place + "ready.stable", ready.stable)
    required = CLOSED * ready.close_write | RENAMED * ready.rename
    anyone = sum({_BITS[a] for a in ready.any})
    if not (required or anyone or stable_s):
        raise Invalid(f"{place}ready names no condition", remedy="write ready: {any: [close_write, rename]}")
    _check_relative(place + "glob", options.glob, options.path)
    if not options.glob or options.glob.endswith("/"):
        raise Invalid(
            f"{place}glob: {options.glob!r} never matches: no path of a file looks like that",
            remedy='leave it out for all files, or write glob: "**/*.h5"',
        )
    if sum(map(len, options.ignore)) > MAX_IGNORE_CHARS:
        raise Invalid(
            f"{place}ignore: the globs have over {MAX_IGNORE_CHARS:,} characters together",
            remedy='write fewer of them, as in "raw_{a,b,c}_*", or let the files come to another folder',
        )
    for glob in options.ignore:
        _check_relative(place + "ignore", glob, options.path)
    selection = Selection(options.glob, options.ignore, options.case == "insensitive", any_form=True)
    try:
        matches, enter = selection.compile()
    except Invalid as e:
        raise Invalid(place + e.message, remedy=e.remedy, **e.details) from None
    return FileSpec(
        root=Path(options.path).expanduser().absolute(),
        required=required,
        any=0 if anyone & required else anyone,
        stable_s=stable_s,
        never=options.refire == "never",
        content=options.refire == "content",
        existing=options.existing,
        loops=options.loops == "allow",
        links=options.symlinks == "files",
        rescan_s=_seconds(place + "rescan", options.rescan, least=0.1),
        matches=matches,
        enter=enter,
        selects=selection.text,
    )


def _check_relative(place: str, glob: str, folder: str) -> None:
    """Raises Invalid if no path in the folder can match the glob."""
    rest = never_relative(glob)
    if rest is None:
        return
    inside = glob.removeprefix(folder.rstrip("/") + "/")
    rest = rest if inside == glob else inside.lstrip("/")
    raise Invalid(
        f"{place}: {glob!r} never matches: it is relative to the trigger's `path`",
        remedy=f"leave out what is before {rest!r}" if rest else "leave the slash out",
    )


def _seconds(place: str, value: str | int | float | None, least: float = 0.0) -> float:
    if value is None:
        return 0.0
    try:
        seconds = duration_ms(value) / 1000
    except ValueError as e:
        raise Invalid(f"{place}: {e}", remedy="write 2s, 500ms, 5m ...") from None
    if seconds < least:
        raise Invalid(f"{place}: {value} is too short", remedy=f"at least {least:g} s")
    return seconds


build_decoders(globals())
