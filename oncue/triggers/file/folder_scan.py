"""A scan of the watched folder, in small steps: what notices cannot tell (files that came while oncue was down, trees
moved in, what an overflow lost) is compared with the ledger.

A folder is watched before it is listed, so that what comes meanwhile is noticed or listed, or both."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

from oncue import ids
from oncue.triggers.file.ledger import KnownFile, Ledger
from oncue.triggers.file.options import FileSpec
from oncue.triggers.file.stability import FileKey
from oncue.triggers.file.watch.base import Watch

NOT_UTF8 = "its path is not UTF-8, which events cannot hold: rename it"
STEP = 256  # entries looked at in one step

#: (folder, name, stat, what is remembered) of a file that is meant.
OnFile = Callable[[str, str, os.stat_result, KnownFile | None], None]
OnSkip = Callable[[str, str], None]  # (path, why)


class FolderScan:
    """Iterating gives None after each step."""

    def __init__(self, start: str, spec: FileSpec, watch: Watch, ledger: Ledger, met: OnFile, skip: OnSkip) -> None:
        self.start, self.full = start, not start
        self.unwatched = 0  # folders that the kernel would not watch
        self._spec, self._watch, self._ledger, self._met, self._skip = spec, watch, ledger, met, skip
        self._todo = [start]
        self._listed: set[str] = set()
        self._unread: list[str] = []

    def __iter__(self) -> Iterator[None]:
        while self._todo:
            folder = self._todo.pop()
            if folder in self._listed or (folder and not self._spec.enter(folder)):
                continue
            try:
                self._add(folder)
                yield from self._list(folder)
            except (FileNotFoundError, NotADirectoryError):
                if not folder:
                    raise
            except OSError as e:
                if not folder:
                    raise
                self._unread.append(folder)
                self._skip(folder + "/", f"the folder cannot be read: {e.strerror}")
            yield
        if self.full:
            self._forget()

    def _add(self, folder: str) -> None:
        try:
            self._watch.add(folder)
        except OSError as e:
            if e.errno != errno.ENOSPC:
                raise
            self.unwatched += 1

    def _list(self, folder: str) -> Iterator[None]:
        remembered = self._ledger.listing(folder)
        back: list[FileKey] = []
        count = 0
        with os.scandir(self._spec.root / folder) as entries:
            for entry in entries:
                count += 1
                if count % STEP == 0:
                    yield
                name = entry.name
                if not is_utf8(name):
                    self._skip(f"{folder}/{name}" if folder else name, NOT_UTF8)
                    continue
                if entry.is_dir(follow_symlinks=False):
                    self._todo.append(f"{folder}/{name}" if folder else name)
                    continue
                known = remembered.pop(name, None)
                if not self._spec.matches(folder, name) or (entry.is_symlink() and not self._spec.links):
                    continue
                try:
                    st = entry.stat(follow_symlinks=self._spec.links)
                except OSError:
                    continue  # gone meanwhile, or a link to nowhere
                if known is not None and known.gone_us:
                    back.append((folder, name))
                self._met(folder, name, st, known)
        self._listed.add(folder)
        if back:
            self._ledger.mark_present(back)
        missing = [(folder, name) for name, found in remembered.items() if not found.gone_us]
        if missing:
            self._ledger.mark_gone(missing, ids.now_us())

    def _forget(self) -> None:
        """Folders that are not there any more, and what has been gone for long."""
        now_us = ids.now_us()
        unread = tuple(folder + "/" for folder in self._unread)
        for folder in self._ledger.folders():
            if folder not in self._listed and folder not in self._unread and not folder.startswith(unread):
                self._ledger.mark_folder_gone(folder, now_us)
        self._ledger.prune(now_us)


def is_utf8(path: str) -> bool:
    """Whether an event can hold the path: it is JSON, which has no place for other names (Python holds their bytes as
    surrogates)."""
    if path.isascii():
        return True
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
