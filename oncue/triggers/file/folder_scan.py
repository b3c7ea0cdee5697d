"""FolderScan: compares a folder with the ledger, in small steps.

A scan finds files that no notice reported: files that came while oncue was down, trees that were
moved in, notices lost in an overflow. Each folder is watched before it is listed, so that a file
that comes meanwhile is noticed, listed, or both.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

from oncue.clocks.process import now_us
from oncue.disk.permissions import READ_FOLDER, explain
from oncue.triggers.file.ledger import KnownFile, Ledger
from oncue.triggers.file.options import FileSpec
from oncue.triggers.file.stability import FileKey
from oncue.triggers.file.watch.base import FolderWatch

NOT_UTF8 = "its path is not UTF-8, which an event cannot hold: rename it"
STEP = 256  # entries of one step

#: Called with (folder, name, stat, ledger's entry) of each selected file.
OnFile = Callable[[str, str, os.stat_result, KnownFile | None], None]
OnSkip = Callable[[str, str], None]  # (path, why)


class FolderScan:
    """One scan of a folder and all below it.

    Iterate it: each item (None) is one step.
    """

    def __init__(
        self, start: str, spec: FileSpec, watch: FolderWatch, ledger: Ledger, on_file: OnFile, on_skip: OnSkip
    ) -> None:
        self.start, self.full = start, not start
        self.unwatched = 0  # folders that the kernel refused to watch
        self._spec, self._watch, self._ledger, self._on_file, self._on_skip = spec, watch, ledger, on_file, on_skip
        self._queue = [start]
        self._listed: set[str] = set()
        self._unread: list[str] = []

    def __iter__(self) -> Iterator[None]:
        while self._queue:
            folder = self._queue.pop()
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
                self._on_skip(folder + "/", f"the folder cannot be read: {explain(e, READ_FOLDER)}")
            yield
        if self.full:
            self._prune()

    def _add(self, folder: str) -> None:
        """Watch a folder; count it if the kernel's limit of watches is reached."""
        try:
            self._watch.add(folder)
        except OSError as e:
            if e.errno != errno.ENOSPC:
                raise
            self.unwatched += 1

    def _list(self, folder: str) -> Iterator[None]:
        """Queue the subfolders of a folder, report its files, mark missing ones."""
        recorded = self._ledger.listing(folder)
        returned: list[FileKey] = []
        count = 0
        with os.scandir(self._spec.root / folder) as entries:
            for entry in entries:
                count += 1
                if count % STEP == 0:
                    yield
                name = entry.name
                if not is_utf8(name):
                    self._on_skip(f"{folder}/{name}" if folder else name, NOT_UTF8)
                    continue
                if entry.is_dir(follow_symlinks=False):
                    self._queue.append(f"{folder}/{name}" if folder else name)
                    continue
                known = recorded.pop(name, None)
                if not self._spec.matches(folder, name) or (entry.is_symlink() and not self._spec.links):
                    continue
                try:
                    st = entry.stat(follow_symlinks=self._spec.links)
                except OSError:
                    continue  # removed meanwhile, or a dangling link
                if known is not None and known.gone_us:
                    returned.append((folder, name))
                self._on_file(folder, name, st, known)
        self._listed.add(folder)
        if returned:
            self._ledger.mark_present(returned)
        missing = [(folder, name) for name, found in recorded.items() if not found.gone_us]
        if missing:
            self._ledger.mark_gone(missing, now_us())

    def _prune(self) -> None:
        """Mark folders that are gone, and prune the ledger."""
        now = now_us()
        unread = tuple(folder + "/" for folder in self._unread)
        for folder in self._ledger.folders():
            if folder not in self._listed and folder not in self._unread and not folder.startswith(unread):
                self._ledger.mark_folder_gone(folder, now)
        self._ledger.prune(now)


def is_utf8(path: str) -> bool:
    """Return True if an event can hold the path.

    Events are JSON. Python represents the bytes of other names as surrogates, which JSON cannot
    hold.
    """
    if path.isascii():
        return True
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
