"""After a backup and a restore, a power cut loses no name of a file: each folder is synced behind its last change."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from oncue.backup.backup import back_up
from oncue.backup.restore import restore
from oncue.config import Settings
from tests.unit.backup.test_interruptions import put_blob
from tests.unit.backup.test_interruptions import settings as settings
from tests.unit.backup.test_log_copy import quiet


class Syncs:
    """Which files and folders were synced when, and which folders got a name when."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._count = 0
        self.synced: dict[int, int] = {}  # inode -> at which step
        self.named: dict[int, int] = {}
        for name in ("replace", "rename"):
            monkeypatch.setattr(os, name, self._naming(getattr(os, name)))
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self._sync)

    def _naming(self, real: Any) -> Any:
        def call(source: Any, target: Any) -> None:
            real(source, target)
            self._count += 1
            self.named[Path(target).parent.stat().st_ino] = self._count

        return call

    def _sync(self, handle: int) -> None:
        self._fsync(handle)
        self._count += 1
        self.synced[os.fstat(handle).st_ino] = self._count

    def lost(self, folder: Path) -> list[str]:
        """Return the folders whose last name a power cut may take."""
        found = []
        for path in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
            inode = path.stat().st_ino
            if self.synced.get(inode, -1) < self.named.get(inode, 0):
                found.append(str(path.relative_to(folder)))
        return found


def test_no_name_is_lost(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, copy = tmp_path / "data", tmp_path / "copy"
    for n in range(3):
        put_blob(data, b"%d" % n)
    (data / "blobs" / "store.id").write_text("1234")
    (data / "triggers" / "deep").mkdir(parents=True)
    (data / "triggers" / "deep" / "state").write_text("state")
    (data / "endpoints" / "local").mkdir(parents=True)
    (data / "endpoints" / "local" / "agent.key").write_text("key")
    syncs = Syncs(monkeypatch)

    back_up(settings, copy, quiet)
    assert syncs.lost(copy) == []

    shutil.rmtree(data / "endpoints")
    restore(copy, data, quiet, force=True)
    before = [p for p in (data / "aside").rglob("*/*") if p.is_dir()]  # moved as they were
    assert set(syncs.lost(data)) <= {str(p.relative_to(data)) for p in before}
