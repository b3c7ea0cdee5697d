"""Tells new content of a file from a change of its times or attributes.

A file's inode number, size and times are compared with those that the ledger has. The ctime differs
after any change, and no program can set it. Where the kernel reported no close, the file's birth
and its modification time decide: new content is younger than the decision about the old one.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from typing import Any

from oncue.triggers.file.ledger import ANY_INODE, KnownFile
from oncue.triggers.file.stability import Fingerprint
from oncue.triggers.file.watch.base import CLOSED, RENAMED

SAME, ATTRIBUTES_ONLY, NEW = "same", "attributes", "new"
_AT_FDCWD, _AT_SYMLINK_NOFOLLOW, _STATX_BTIME = -100, 0x100, 0x800  # statx(2)
_BTIME_OFFSET, _STATX_BYTES = 80, 256


def looks_same(known: KnownFile, seen: Fingerprint, ctime_ns: int) -> bool:
    """Return True if nothing has changed. Cheap: for each file of a scan."""
    if not known.is_same(seen):
        return False
    return not known.ctime_ns or ctime_ns == known.ctime_ns


def compare(known: KnownFile, seen: Fingerprint, ctime_ns: int, bits: int, born_us: Callable[[], int | None]) -> str:
    """Return SAME, ATTRIBUTES_ONLY or NEW.

    `bits`: kinds of the notices. `born_us`: see `birth_us`; it is called only in doubt.
    """
    if known.seen.ino not in (seen.ino, ANY_INODE) or known.seen.size != seen.size:
        return NEW
    if looks_same(known, seen, ctime_ns):
        unknown = not known.ctime_ns and ctime_ns // 1_000 > known.at_us
        return NEW if unknown and bits & CLOSED else SAME
    if bits & CLOSED:
        return NEW
    if seen.mtime_ns != known.seen.mtime_ns and seen.mtime_ns // 1_000 > known.at_us:
        return NEW
    born = born_us()
    if born is None:
        return NEW if bits & RENAMED else ATTRIBUTES_ONLY
    return NEW if born > known.at_us else ATTRIBUTES_ONLY


def birth_us(path: str) -> int | None:
    """Return when the file's inode was created, in unix µs; None: unknown."""
    if sys.platform != "linux":
        try:
            return round(os.lstat(path).st_birthtime * 1e6)
        except (OSError, AttributeError):
            return None
    statx = _statx()
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    if statx is None or statx(_AT_FDCWD, os.fsencode(path), _AT_SYMLINK_NOFOLLOW, _STATX_BTIME, buffer):
        return None
    if not int.from_bytes(buffer.raw[:4], sys.byteorder) & _STATX_BTIME:
        return None
    at = _BTIME_OFFSET
    seconds = int.from_bytes(buffer.raw[at : at + 8], sys.byteorder, signed=True)
    return seconds * 1_000_000 + int.from_bytes(buffer.raw[at + 8 : at + 12], sys.byteorder) // 1_000


@functools.cache
def _statx() -> Any:
    """Return the C library's statx; None: it has none. Python has it from 3.15 on."""
    try:
        return ctypes.CDLL(None).statx
    except (OSError, AttributeError):
        return None
