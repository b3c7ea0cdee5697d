"""The blob store: whole or not there, by the hash of its content."""

from __future__ import annotations

import hashlib
import os
import threading
import time
import uuid
from pathlib import Path

import pytest

from oncue.blobs import Blobs, UrlBlobs, open_blobs
from oncue.errors import BlobMissing, Invalid

CONTENT = os.urandom(300_000)
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(params=["folder", "file-url", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "folder":
        return open_blobs(tmp_path / "b")
    if request.param == "file-url":
        return open_blobs(f"file://{tmp_path}/b")
    return open_blobs(f"memory://{uuid.uuid4().hex}")


def test_put_and_read(blobs: Blobs) -> None:
    assert not blobs.has(SHA)
    assert blobs.put(CONTENT) == SHA
    assert blobs.put(CONTENT) == SHA
    assert blobs.has(SHA)
    assert blobs.size(SHA) == len(CONTENT)
    assert blobs.read(SHA) == CONTENT
    assert blobs.part(SHA, 299_990, 100) == CONTENT[-10:]
    assert blobs.part(SHA, 300_000, 100) == b""
    with blobs.open(SHA) as f:
        assert f.read(5) == CONTENT[:5]
    assert blobs.delete(SHA)
    assert not blobs.delete(SHA)
    with pytest.raises(BlobMissing):
        blobs.part(SHA, 0, 1)
    with pytest.raises(BlobMissing):
        blobs.size(SHA)


def test_put_file(blobs: Blobs, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(CONTENT)
    assert blobs.put_file(path) == (SHA, len(CONTENT))
    assert blobs.read(SHA) == CONTENT
    with pytest.raises(Invalid, match="cannot be read"):
        blobs.put_file(tmp_path / "nothing")


def test_parts_in_order_doubles_and_gaps(blobs: Blobs) -> None:
    with blobs.upload(SHA, len(CONTENT)) as upload:
        assert upload.write(0, CONTENT[:1000]) == 1000
        assert upload.write(0, CONTENT[:1000]) == 1000
        assert upload.write(500, CONTENT[500:2000]) == 2000
        with pytest.raises(Invalid, match="gap"):
            upload.write(3000, b"x")
        assert not blobs.has(SHA)
        upload.write(2000, CONTENT[2000:])
        with pytest.raises(Invalid, match="more than"):
            upload.write(len(CONTENT), b"x")
        assert upload.finish() == SHA
    assert blobs.read(SHA) == CONTENT


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + b"?", b""])
def test_wrong_content_never_gets_the_name(blobs: Blobs, content: bytes) -> None:
    upload = blobs.upload(SHA, len(CONTENT))
    upload.write(0, content)
    with pytest.raises(Invalid, match="not the announced"):
        upload.finish()
    assert not blobs.has(SHA)
    assert list((blobs.folder / "tmp").iterdir()) == []
    with pytest.raises(Invalid, match="ended"):
        upload.write(0, b"x")


@pytest.mark.parametrize("bad", ["../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n", "", "0" * 63 + "/"])
def test_a_hash_is_hex_before_it_is_a_path(blobs: Blobs, bad: str) -> None:
    with pytest.raises(Invalid):
        blobs.has(bad)
    with pytest.raises(Invalid):
        blobs.part(bad, 0, 1)


def test_a_damaged_blob_is_told(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    blobs.put(CONTENT)
    path = tmp_path / SHA[:2] / SHA
    path.write_bytes(b"?" + CONTENT[1:])
    with pytest.raises(BlobMissing, match="damaged"):
        blobs.read(SHA)


def test_sweep_keeps_what_is_wanted_or_young(blobs: Blobs) -> None:
    a, b = blobs.put(b"a"), blobs.put(b"b")
    assert blobs.sweep({a, b}, time.time() + 10) == 0
    assert blobs.sweep(set(), time.time() - 1000) == 0
    assert blobs.sweep({a}, time.time() + 10) == 1
    assert blobs.has(a)
    assert not blobs.has(b)


def test_sweep_takes_uploads_that_nobody_continued(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    old, young = blobs.upload(SHA), blobs.upload(SHA)
    old.write(0, b"x")
    stale = tmp_path / "tmp" / os.path.basename(old._temporary.name)
    os.utime(stale, (0, 0))
    blobs.sweep(set(), 0)
    assert not stale.exists()
    assert len(list((tmp_path / "tmp").iterdir())) == 1
    old.abort()
    young.abort()


def test_many_writers_of_the_same_content(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def write() -> None:
        try:
            Blobs(tmp_path).put(CONTENT)
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert errors == []
    assert Blobs(tmp_path).read(SHA) == CONTENT
    assert list((tmp_path / "tmp").iterdir()) == []


def test_urls_go_through_fsspec(tmp_path: Path) -> None:
    assert type(open_blobs(str(tmp_path))) is Blobs
    assert type(open_blobs("memory://x")) is UrlBlobs
