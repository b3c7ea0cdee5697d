"""InotifyWatch: notices of the Linux kernel.

It uses watchdog's bindings of the system calls.

Watchdog's observer is not used on Linux: it does not pass on an overflow of the kernel's queue; a
file moved out of the tree delays all later events by half a second (it waits for the other half of
the rename); a move from outside looks like a creation; and each event passes three threads.
InotifyWatch reads a batch at a time and has no thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import struct
from pathlib import Path

from watchdog.observers.inotify_c import InotifyConstants as K
from watchdog.observers.inotify_c import WatchDescriptor, inotify_add_watch, inotify_init, inotify_rm_watch

from oncue.clocks.process import now_us
from oncue.triggers.file.watch.base import (
    ATTRIBUTES,
    CLOSED,
    CREATED,
    FOLDER_ADDED,
    FOLDER_MOVED,
    OPENED,
    OVERFLOW,
    RENAMED,
    ROOT_GONE,
    Notice,
)

_HEAD = struct.Struct("=iIII")  # inotify(7): wd, mask, cookie, length of the name that follows
_READ_BYTES = 1 << 18
_READS = 16  # most reads in one call, before the caller gets its turn
_MASK = K.IN_CLOSE_WRITE | K.IN_MOVED_FROM | K.IN_MOVED_TO | K.IN_CREATE | K.IN_ATTRIB | K.IN_ONLYDIR | K.IN_EXCL_UNLINK
_MAX_MOVED = 1_000
_GONE = K.IN_IGNORED | K.IN_UNMOUNT | K.IN_MOVE_SELF | K.IN_DELETE_SELF


class InotifyWatch:
    """A Watch by inotify(7)."""

    reports_closes = True

    def __init__(self, root: Path, opens: bool = False) -> None:
        """`opens`: report OPENED too, one more notice for each open of any file."""
        self.reports_opens = opens
        self._mask = _MASK | K.IN_OPEN if opens else _MASK
        self._root = os.fsencode(root)
        self._moved: dict[int, tuple[str, str]] = {}  # cookie -> former name, until the new one is read
        self._folders: dict[int, str] = {}
        self._watches: dict[str, WatchDescriptor] = {}
        self._fd = inotify_init()
        if self._fd < 0:
            raise _error(root)
        os.set_blocking(self._fd, False)
        os.set_inheritable(self._fd, False)
        try:
            self._wake_r, self._wake_w = os.pipe()
        except OSError:
            os.close(self._fd)
            raise
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._poll.register(self._wake_r, select.POLLIN)
        try:
            self.add("")
        except OSError:
            self.close()
            raise

    def add(self, folder: str) -> None:
        path = os.path.join(self._root, os.fsencode(folder)) if folder else self._root
        mask = self._mask | (K.IN_DONT_FOLLOW if folder else K.IN_MOVE_SELF | K.IN_DELETE_SELF)
        wd = inotify_add_watch(self._fd, path, mask)
        if wd < 0:
            raise _error(path)
        known = self._folders.get(wd)
        if known is not None and known != folder and self._watches.get(known) == wd:
            del self._watches[known]  # the same folder under a new name
        self._folders[wd] = folder
        self._watches[folder] = wd

    def read(self, timeout_s: float) -> list[Notice]:
        ready = self._poll.poll(max(0, round(timeout_s * 1000)))
        notices: list[Notice] = []
        for fd, _ in ready:
            if fd == self._wake_r:
                _drain(fd)
                continue
            for _ in range(_READS):
                try:
                    data = os.read(fd, _READ_BYTES)
                except BlockingIOError:
                    break
                self._parse(data, now_us(), notices)
                if len(data) < _READ_BYTES // 2:
                    break
        return notices

    def wake(self) -> None:
        with contextlib.suppress(OSError):  # full: a wake-up is pending; closed: nothing reads
            os.write(self._wake_w, b"!")

    def close(self) -> None:
        for fd in (self._fd, self._wake_r, self._wake_w):
            if fd >= 0:
                os.close(fd)
        self._fd = self._wake_r = self._wake_w = -1

    def _parse(self, data: bytes, at_us: int, out: list[Notice]) -> None:
        i, end, folders, head = 0, len(data), self._folders, _HEAD
        while i < end:
            wd, mask, cookie, length = head.unpack_from(data, i)
            i += 16 + length
            folder = folders.get(wd)
            if folder is None:
                if mask & K.IN_Q_OVERFLOW:
                    out.append(Notice(OVERFLOW, "", "", at_us))
                continue  # the folder is not watched any more
            if mask & _GONE:
                self._ended(wd, folder, at_us, out)
                continue
            name = os.fsdecode(data[i - length : i].rstrip(b"\0"))
            if mask & K.IN_ISDIR:
                below = f"{folder}/{name}" if folder else name
                if mask & K.IN_MOVED_FROM:
                    self._drop(below)
                elif mask & (K.IN_MOVED_TO | K.IN_CREATE):
                    out.append(Notice(FOLDER_MOVED if mask & K.IN_MOVED_TO else FOLDER_ADDED, below, "", at_us))
            elif mask & K.IN_CLOSE_WRITE:
                out.append(Notice(CLOSED, folder, name, at_us))
            elif mask & K.IN_MOVED_TO:
                out.append(Notice(RENAMED, folder, name, at_us, self._moved.pop(cookie, None)))
            elif mask & K.IN_CREATE:
                out.append(Notice(CREATED, folder, name, at_us))
            elif mask & K.IN_ATTRIB:
                if name:  # without a name: the watched folder itself
                    out.append(Notice(ATTRIBUTES, folder, name, at_us))
            elif mask & K.IN_OPEN:
                if name:
                    out.append(Notice(OPENED, folder, name, at_us))
            elif self.reports_opens:  # IN_MOVED_FROM
                if len(self._moved) > _MAX_MOVED:  # moved out of the tree: their new names are not read
                    self._moved.clear()
                self._moved[cookie] = (folder, name)

    def _ended(self, wd: int, folder: str, at_us: int, out: list[Notice]) -> None:
        if not folder:
            out.append(Notice(ROOT_GONE, "", "", at_us))
            return
        del self._folders[wd]
        if self._watches.get(folder) == wd:
            del self._watches[folder]

    def _drop(self, folder: str) -> None:
        """Remove the watches of a folder that was moved, and of all below it.

        Its new name is reported as FOLDER_ADDED.
        """
        prefix = folder + "/"
        for path in [p for p in self._watches if p == folder or p.startswith(prefix)]:
            wd = self._watches.pop(path)
            self._folders.pop(wd, None)
            inotify_rm_watch(self._fd, wd)


def _drain(fd: int) -> None:
    try:
        while os.read(fd, 4096):
            pass
    except BlockingIOError:
        pass


def _error(path: object) -> OSError:
    code = ctypes.get_errno()
    if code == errno.ENOSPC:
        return OSError(code, "the kernel's limit of watched folders is reached: raise fs.inotify.max_user_watches")
    if code == errno.EMFILE:
        return OSError(code, "this user's limit of inotify instances is reached: raise fs.inotify.max_user_instances")
    name = os.fsdecode(path) if isinstance(path, bytes) else str(path)
    return OSError(code, os.strerror(code), name)
