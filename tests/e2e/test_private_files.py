"""Other users of the machine can read nothing in a data folder, also one that was open to them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.e2e.conftest import System
from tests.e2e.running import PATIENCE_S

pytestmark = pytest.mark.embedded


def open_to_others(folder: Path) -> dict[str, str]:
    """Return the modes of files and folders that others have rights to."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        mode = path.lstat().st_mode
        if mode & 0o077 and not stat.S_ISLNK(mode):
            found[str(path.relative_to(folder))] = oct(mode)
    return found


def write_file(path: str) -> int:
    import os
    import stat

    with open(path, "w") as file:
        file.write("a result for the whole group")
    return stat.S_IMODE(os.stat(path).st_mode)


def test_a_data_folder_that_was_open_is_closed_and_stays_so(stopped: System) -> None:
    stopped.up("--workers", "1")
    with stopped.client() as client:
        assert client.submit(pow, 2, 2).result(PATIENCE_S) == 4
        client.submit(len, b"x" * 3_000_000).result(PATIENCE_S)  # a blob
    stopped.down()
    outside = stopped.folder / "outside"
    outside.write_text("not ours")
    outside.chmod(0o644)
    (stopped.data / "link").symlink_to(outside)
    for path in (stopped.data, *stopped.data.rglob("*")):
        if not path.is_symlink() and "blobs" not in path.parent.parts:
            path.chmod(0o755 if path.is_dir() else 0o644)
    (stopped.data / "secrets").mkdir()
    (stopped.data / "secrets" / "daq").write_text("whsec")
    (stopped.data / "script.sh").touch(mode=0o755)
    stopped.up("--workers", "1")
    with stopped.client() as client:
        client.submit(len, b"y" * 3_000_000).result(PATIENCE_S)
    assert open_to_others(stopped.data) == {}
    assert stat.S_IMODE((stopped.data / "script.sh").stat().st_mode) == 0o700
    assert stat.S_IMODE(outside.stat().st_mode) == 0o644, "links are not followed"


def test_the_files_of_tasks_have_the_users_own_umask(stopped: System) -> None:
    before = os.umask(0o027)
    try:
        stopped.up("--workers", "1")
    finally:
        os.umask(before)
    with stopped.client() as client:
        assert client.submit(write_file, str(stopped.folder / "result")).result(PATIENCE_S) == 0o640
