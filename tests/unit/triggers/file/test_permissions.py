"""A missing permission is told with the account that lacks it, and the permission."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from oncue.disk import permissions
from oncue.disk.permissions import READ_FOLDER, account, explain
from tests.integration.watched import Watched


def test_other_errors_keep_their_reason() -> None:
    assert explain(OSError(errno.EIO, "Input/output error"), READ_FOLDER) == "Input/output error"
    assert explain(OSError("odd"), READ_FOLDER) == "odd"


def test_the_account_and_what_it_may_not_do_are_named() -> None:
    why = explain(PermissionError(errno.EACCES, "Permission denied"), READ_FOLDER)
    assert why.startswith(
        f"Permission denied: the account {account()} of this server may not read and enter this folder"
    )
    assert "setfacl" in why


def test_an_account_without_a_name_is_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: int) -> None:
        raise KeyError

    monkeypatch.setattr(permissions.pwd, "getpwuid", unknown)
    account.cache_clear()
    assert account() == f"with the uid {os.geteuid()}"
    account.cache_clear()


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the set of folders that this process may not read; root could read all."""
    denied: set[str] = set()
    real = os.scandir

    def scandir(path: os.PathLike[str] | str) -> object:
        if os.fspath(path) in denied:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    return denied


def test_a_trigger_that_may_not_read_its_folder_names_the_account(tmp_path: Path, unreadable: set[str]) -> None:
    watched = Watched(tmp_path)
    unreadable.add(str(watched.data))

    async def main() -> None:
        async with watched.running(until="failed"):
            detail = watched.trigger.status().detail
            assert detail.startswith(
                f"{watched.data}: Permission denied: the account {account()} of this server may not"
            )

    asyncio.run(main())


def test_a_folder_below_that_may_not_be_read_is_told_with_the_account(tmp_path: Path, unreadable: set[str]) -> None:
    watched = Watched(tmp_path)
    (watched.data / "inner").mkdir()
    unreadable.add(str(watched.data / "inner"))

    async def main() -> None:
        async with watched.running():
            assert f"the account {account()} of this server may not read" in await watched.decided("inner/")

    asyncio.run(main())
