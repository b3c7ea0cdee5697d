"""What one owner may store as blobs: a share of the disk, whatever it tries."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from oncue.blobs import Blobs
from oncue.dispatcher import blob_quota
from oncue.dispatcher.blob_quota import BlobQuota
from oncue.errors import Conflict, Invalid


@pytest.fixture
def blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Blobs:
    """Return a store on a disk of 1,000 bytes."""
    monkeypatch.setattr(
        blob_quota, "os", SimpleNamespace(statvfs=lambda _: SimpleNamespace(f_blocks=10, f_frsize=100)), raising=True
    )
    return Blobs(tmp_path / "blobs")


@pytest.fixture
def quota(tmp_path: Path, blobs: Blobs) -> Iterator[BlobQuota]:
    with closing(BlobQuota(tmp_path / "owners.db", blobs, 50)) as quota:
        yield quota


def put(quota: BlobQuota, owner: str, size: int) -> str:
    content = os.urandom(size)
    sha256 = hashlib.sha256(content).hexdigest()
    quota.put(owner, sha256, content)
    return sha256


def test_an_owner_has_a_share_and_leaves_others_theirs(quota: BlobQuota) -> None:
    put(quota, "mallory", 400)
    with pytest.raises(Conflict, match=r"mallory has 400 bytes.*with 101 more they exceed.*500"):
        put(quota, "mallory", 101)
    put(quota, "mallory", 100)
    put(quota, "alice", 500)
    put(quota, "", 5_000)


def test_unfinished_uploads_count_and_give_their_room_back(quota: BlobQuota) -> None:
    sha256 = "0" * 64
    began = [quota.upload("mallory", sha256, 250) for _ in range(2)]
    with pytest.raises(Conflict):
        quota.upload("mallory", sha256, 1)
    began[0].abort()
    began[0].abort()
    began[1].write(0, bytes(250))
    with pytest.raises(Invalid):
        began[1].finish()
    with pytest.raises(Invalid):
        quota.upload("mallory", "../../etc", 1)
    put(quota, "mallory", 500)


def test_equal_content_is_paid_once(quota: BlobQuota) -> None:
    content = bytes(300)
    sha256 = hashlib.sha256(content).hexdigest()
    for owner in ("alice", "alice", "bob"):
        quota.put(owner, sha256, content)
    put(quota, "alice", 200)
    put(quota, "bob", 500)


def test_it_outlives_a_restart_and_forgets_what_was_deleted(tmp_path: Path, blobs: Blobs, quota: BlobQuota) -> None:
    first = put(quota, "alice", 300)
    put(quota, "alice", 200)
    quota.close()
    with closing(BlobQuota(tmp_path / "owners.db", blobs, 50)) as again:
        with pytest.raises(Conflict):
            put(again, "alice", 1)
        blobs.delete(first)
        again.forget_deleted()
        put(again, "alice", 300)
        with pytest.raises(Conflict):
            put(again, "alice", 1)


def test_a_damaged_file_is_replaced(tmp_path: Path, blobs: Blobs) -> None:
    (tmp_path / "damaged.db").write_bytes(os.urandom(8_192))
    with closing(BlobQuota(tmp_path / "damaged.db", blobs, 50)) as quota:
        put(quota, "alice", 500)


def test_a_disk_that_cannot_be_written_keeps_nobody_out(tmp_path: Path, blobs: Blobs) -> None:
    with closing(BlobQuota(tmp_path / "missing" / "owners.db", blobs, 50)) as quota:
        put(quota, "alice", 500)
        with pytest.raises(Conflict):
            put(quota, "alice", 1)


def test_without_a_limit(tmp_path: Path, blobs: Blobs) -> None:
    with closing(BlobQuota(tmp_path / "owners.db", blobs, 100)) as quota:
        put(quota, "alice", 5_000)
