"""One agent a folder, also where locks do not reach other machines."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from oncue.endpoint import folder_claim
from oncue.endpoint.folder_claim import FolderClaim, read_claim
from oncue.errors import Conflict

A, B = b"a" * 8, b"b" * 8


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_claim, "SILENT_S", 1.0)
    monkeypatch.setattr(folder_claim, "BEAT_S", 0.05)


def test_after_a_kill_the_next_agent_of_the_same_host_knows_its_predecessor(tmp_path: Path) -> None:
    first = FolderClaim(tmp_path, "login1", A)
    assert first.after == b""

    second = FolderClaim(tmp_path, "login1", B)  # under the folder's lock: the first one is dead

    assert second.after == A
    claim = read_claim(tmp_path)
    assert claim is not None
    assert (claim.host, claim.pid, claim.boot) == ("login1", os.getpid(), B.hex())


def test_after_an_end_in_order_nothing_is_left(tmp_path: Path) -> None:
    FolderClaim(tmp_path, "login1", A).release()

    assert read_claim(tmp_path) is None
    assert FolderClaim(tmp_path, "login2", B).after == b""


def test_a_copied_folder_has_no_predecessor(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    FolderClaim(tmp_path / "x", "login1", A)
    shutil.copytree(tmp_path / "x", tmp_path / "y")

    assert FolderClaim(tmp_path / "y", "login1", B).after == b""


def test_a_second_login_node_is_refused_while_the_first_is_alive(tmp_path: Path) -> None:
    first, over = FolderClaim(tmp_path, "login1", A), threading.Event()

    def beat() -> None:
        while not over.wait(0.02):
            first.beat()

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        with pytest.raises(Conflict, match=r"on another machine: login1, pid \d+"):
            FolderClaim(tmp_path, "login2", B)
    finally:
        over.set()
        beating.join()
    claim = read_claim(tmp_path)
    assert claim is not None
    assert claim.boot == A.hex()


def test_a_second_login_node_takes_over_from_one_that_is_silent(tmp_path: Path) -> None:
    FolderClaim(tmp_path, "login1", A)
    said: list[str] = []

    second = FolderClaim(tmp_path, "login2", B, said.append)

    assert second.after == b""
    assert "ran on login1" in said[0]
    old = time.time() - 3600
    os.utime(tmp_path / "claim.json", (old, old))
    FolderClaim(tmp_path, "login3", A, said.append)
    assert len(said) == 1  # it was old: no need to wait


def test_a_full_disk_does_not_keep_an_agent_from_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FolderClaim(tmp_path, "login1", A)

    def full(claim: FolderClaim, content: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FolderClaim, "_write", full)
    said: list[str] = []

    claim = FolderClaim(tmp_path, "login1", B, said.append)

    assert claim.after == A
    assert "claim.json cannot be written: No space left on device" in said[0]
    claim.beat()
    claim.release()


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"host":"x","pid":1,"boot":"zz","inode":1}'])
def test_a_damaged_claim_counts_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "claim.json").write_bytes(content)

    assert FolderClaim(tmp_path, "login1", A).after == b""
