"""Content-addressed store of large payloads and function bodies.

The key of a blob is the SHA-256 of its content, in hex.

    put, put_file, upload ──► <folder>/tmp/<random>
                                  └──check hash, fsync, rename, fsync folder──► <folder>/ab/abcd…

A blob under its final name is complete. A process that dies while it writes leaves a file in `tmp`,
which `sweep` deletes. Several processes may use one folder: two that write the same content at once
do no harm. Other stores (S3 ...) have the same methods through fsspec, see `open_blobs`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from oncue.clocks.process import now_us, process_clock
from oncue.disk.durable_files import sync_file, sync_folder
from oncue.disk.space import NO_SPACE
from oncue.errors import BlobMissing, DiskFull, Invalid, MissingExtra
from oncue.extras import pip_install

STORE_ID = "store.id"  # file with the store's id
_SHA = re.compile(r"[0-9a-f]{64}\Z")
_COPY_BYTES = 1 << 20
_RENEWED_S = 24 * 3600.0  # an object younger than this is not written again
_STALE_TMP_S = 24 * 3600.0  # an upload without a write for so long is abandoned


class Upload:
    """Upload of one blob in parts, in order.

    A context manager: an upload that is not finished at its end is deleted.
    """

    def __init__(
        self, sha256: str, size: int | None, temporary: BinaryIO, keep: Callable[[BinaryIO, str], None]
    ) -> None:
        self.sha256, self.size, self.offset = sha256, size, 0
        self._temporary, self._keep, self._hash, self._open = temporary, keep, hashlib.sha256(), True
        self.on_end: Callable[[bool], None] = lambda stored: None  # called once; True: it is stored

    def write(self, offset: int, part: bytes | memoryview) -> int:
        """Write the part that starts at `offset`; return the next offset.

        Bytes that were written before are skipped. Raises Invalid for a gap and for more bytes than
        announced; DiskFull.
        """
        if not self._open:
            raise Invalid("this upload has ended", remedy="start it again from the first byte")
        if offset > self.offset:
            raise Invalid(f"a gap in the upload: the next byte is {self.offset:,}, not {offset:,}")
        fresh = memoryview(part)[self.offset - offset :]
        if self.size is not None and self.offset + len(fresh) > self.size:
            raise Invalid(f"the upload has more than the announced {self.size:,} bytes")
        with _disk():
            self._temporary.write(fresh)
        self._hash.update(fresh)
        self.offset += len(fresh)
        return self.offset

    def finish(self) -> str:
        """Make the blob durable under its hash, and return the hash.

        Raises Invalid if size or hash differ from the announced ones; DiskFull.
        """
        found = self._hash.hexdigest()
        wrong = (self.size is not None and self.offset != self.size) or (self.sha256 and found != self.sha256)
        if wrong or not self._open:
            self.abort()
            raise Invalid(
                f"the content ({self.offset:,} bytes, SHA-256 {found[:12]}…) is not the announced one "
                f"({'any size' if self.size is None else f'{self.size:,} bytes'}, {self.sha256[:12]}…)",
                remedy="send it again; if this repeats, the source changed while it was read",
            )
        try:
            with _disk():
                self._keep(self._temporary, found)
        except BaseException:
            self.abort()
            raise
        self._open = False
        self.on_end(True)
        return found

    def abort(self) -> None:
        """Delete the upload. Does nothing after `finish`."""
        if self._open:
            self._open = False
            self.on_end(False)
            with contextlib.suppress(OSError):
                self._temporary.close()
            with contextlib.suppress(OSError):
                os.unlink(self._temporary.name)

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()


class Blobs:
    """Blob store in a folder.

    `durable=False` skips fsync: for an agent's cache, which need not survive a power cut.
    """

    def __init__(self, folder: Path | str, *, durable: bool = True) -> None:
        self.folder, self.durable = Path(folder), durable
        self._tmp = self.folder / "tmp"
        with _disk():
            self._tmp.mkdir(parents=True, exist_ok=True)

    def identity(self) -> str:
        """Return the store's id, equal in all processes that use it.

        Raises DiskFull, Invalid.
        """
        path = self.folder / STORE_ID
        if not path.exists():
            with _disk():
                fd, name = tempfile.mkstemp(dir=self._tmp)
                os.write(fd, secrets.token_hex(8).encode())
                os.close(fd)
                with contextlib.suppress(FileExistsError):  # another process was faster
                    os.link(name, path)
                os.unlink(name)
        try:
            return path.read_text()
        except OSError as e:
            raise Invalid(f"{path} cannot be read: {e.strerror}", remedy="the server needs to read it") from None

    def trouble(self, identity: str) -> str:
        """Return why this is not the store with that id at the moment; "" if it is."""
        path = self.folder / STORE_ID
        try:
            found = path.read_text()
        except OSError as e:
            return f"{path} cannot be read: {e.strerror}"
        return "" if found == identity else f"{self.folder} is another store"

    # ------------------------------------------------------------ write

    def put(self, content: bytes) -> str:
        """Store the content and return its hash. Raises DiskFull."""
        sha = hashlib.sha256(content).hexdigest()
        if not self.has(sha):
            with self.upload(sha, len(content)) as upload:
                upload.write(0, content)
                upload.finish()
        return sha

    def put_file(self, path: Path | str) -> tuple[str, int]:
        """Store a file; return (hash, size).

        Raises Invalid if it cannot be read, DiskFull.
        """
        try:
            source = open(path, "rb")  # noqa: SIM115  (its errors differ from the store's)
        except OSError as e:
            raise Invalid(f"{path} cannot be read: {e.strerror}") from None
        with source, self.upload("", None) as upload:
            while part := source.read(_COPY_BYTES):
                upload.write(upload.offset, part)
            return upload.finish(), upload.offset

    def upload(self, sha256: str, size: int | None = None) -> Upload:
        """Start an upload. `sha256` "" and `size` None accept any content.

        Raises Invalid for a malformed hash.
        """
        if sha256:
            _check(sha256)
        with _disk():
            fd, name = tempfile.mkstemp(dir=self._tmp)
            os.close(fd)
            return Upload(sha256, size, cast(BinaryIO, open(name, "r+b")), self._keep)

    def _keep(self, temporary: BinaryIO, sha: str) -> None:
        temporary.flush()
        if self.durable:
            os.fsync(temporary.fileno())
        temporary.close()
        target = self._path(sha)
        target.parent.mkdir(exist_ok=True)
        os.replace(temporary.name, target)
        self._sync_name(target)

    def _sync_name(self, target: Path) -> None:
        if self.durable:
            sync_folder(target.parent)
            sync_folder(self.folder)

    def link(self, sha256: str, other: Blobs) -> bool:
        """Take a blob of another folder, without a copy.

        Return False if that cannot be: it is not there, or on another file system. Nobody may
        write to the file afterwards: both folders have it.
        """
        source, target = other._path(sha256), self._path(sha256)
        try:
            if self.durable:
                sync_file(source)
            target.parent.mkdir(exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.link(source, target)
            self._sync_name(target)
        except OSError:
            return False
        return True

    # ------------------------------------------------------------ read

    def has(self, sha256: str) -> bool:
        return self._path(sha256).exists()

    def renew(self, sha256: str) -> bool:
        """Let a blob count as written now, for `sweep`. Return False if it is not here."""
        try:
            os.utime(self._path(sha256))
        except FileNotFoundError:
            return False
        except OSError:  # another user's file: it is here, as it was
            return True
        return True

    def size(self, sha256: str) -> int:
        """Return the size in bytes. Raises BlobMissing."""
        try:
            return self._path(sha256).stat().st_size
        except OSError as e:
            raise _missing(sha256) from e

    def open(self, sha256: str) -> BinaryIO:
        """Open a blob for reading. Raises BlobMissing."""
        try:
            return open(self._path(sha256), "rb")
        except OSError as e:
            raise _missing(sha256) from e

    def part(self, sha256: str, offset: int, n: int) -> bytes:
        """Return at most n bytes from `offset` on; b"" at the end. Raises BlobMissing."""
        with self.open(sha256) as f:
            f.seek(offset)
            return f.read(n)

    def read(self, sha256: str) -> bytes:
        """Return the content.

        Raises BlobMissing, also if the content does not have its hash.
        """
        with self.open(sha256) as f:
            content = f.read()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise BlobMissing(f"the blob {sha256[:12]}… is damaged", remedy="delete it and send it again")
        return content

    # ------------------------------------------------------------ delete

    def written_s(self, sha256: str) -> float:
        """Return the time of the last write in unix seconds; 0 if there is no such blob."""
        try:
            return self._path(sha256).stat().st_mtime
        except OSError:
            return 0.0

    def delete(self, sha256: str) -> bool:
        """Delete a blob. Return False if there was none."""
        try:
            self._path(sha256).unlink()
        except FileNotFoundError:
            return False
        return True

    def sweep(self, keep: Collection[str], older_than_s: float) -> int:
        """Delete old blobs that are not in `keep`.

        A blob is old if it was written before `older_than_s` (unix time). Also deletes uploads
        without a write for a day. Returns the number of deleted blobs.

        File times are the system clock's. If it was stepped back, fresh files look old.
        """
        deleted = 0
        for sha256, _ in self.written_before(older_than_s):
            if sha256 not in keep:
                deleted += self.delete(sha256)
        self.delete_abandoned()
        return deleted

    def written_before(self, older_than_s: float) -> Iterator[tuple[str, float]]:
        """Yield (blob, time) of those that were written before this unix time, in seconds."""
        older_than_s -= max(0.0, -process_clock.behind_us() / 1e6)
        for entry in self.folder.glob("[0-9a-f][0-9a-f]/*"):
            with contextlib.suppress(FileNotFoundError):
                if (written_s := entry.stat().st_mtime) < older_than_s and _SHA.match(entry.name):
                    yield entry.name, written_s

    def delete_abandoned(self) -> None:
        """Delete uploads without a write for a day."""
        stale = min(time.time(), now_us() / 1e6) - _STALE_TMP_S
        for entry in self._tmp.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if entry.stat().st_mtime < stale:
                    entry.unlink()

    def _path(self, sha: str) -> Path:
        _check(sha)
        return self.folder / sha[:2] / sha


class UrlBlobs(Blobs):
    """Blob store at any URL that fsspec supports.

    An upload is written to a local file, checked, then sent to the store under its final name.
    """

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ImportError:
            raise MissingExtra(f"blobs at {url} need fsspec", remedy=pip_install(["fsspec"])) from None
        try:
            self._store, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as e:
            raise MissingExtra(
                f"blobs at {url}: {e}", remedy="install what fsspec needs for this kind of URL"
            ) from None
        scratch = tempfile.mkdtemp(prefix="oncue-blobs-")
        weakref.finalize(self, shutil.rmtree, scratch, ignore_errors=True)
        super().__init__(scratch, durable=False)
        self._store.makedirs(self._root, exist_ok=True)

    def _keep(self, temporary: BinaryIO, sha: str) -> None:
        temporary.close()
        name, part = self._name(sha), f"{self._root}/tmp/{os.path.basename(temporary.name)}"
        # In other stores than folders an object appears whole.
        if self._store.protocol in ("file", ("file", "local")):
            self._store.makedirs(f"{self._root}/tmp", exist_ok=True)
            self._store.makedirs(f"{self._root}/{sha[:2]}", exist_ok=True)
            self._store.put_file(temporary.name, part)
            self._store.mv(part, name)
        else:
            self._store.put_file(temporary.name, name)
        os.unlink(temporary.name)

    def has(self, sha256: str) -> bool:
        return bool(self._store.exists(self._name(sha256)))

    def renew(self, sha256: str) -> bool:
        # Such stores have no way to touch an object: an old one is sent again.
        name = self._name(sha256)
        return bool(self._store.exists(name)) and self._modified_s(name) > time.time() - _RENEWED_S

    def size(self, sha256: str) -> int:
        try:
            return int(self._store.size(self._name(sha256)))
        except FileNotFoundError as e:
            raise _missing(sha256) from e

    def open(self, sha256: str) -> BinaryIO:
        try:
            return cast(BinaryIO, self._store.open(self._name(sha256), "rb"))
        except FileNotFoundError as e:
            raise _missing(sha256) from e

    def delete(self, sha256: str) -> bool:
        if not self.has(sha256):
            return False
        self._store.rm_file(self._name(sha256))
        return True

    def identity(self) -> str:
        return str(self._root)

    def trouble(self, identity: str) -> str:
        return ""

    def sweep(self, keep: Collection[str], older_than_s: float) -> int:
        gone = 0
        for name in self._store.find(self._root):
            sha = name.rsplit("/", 1)[-1]
            if _SHA.match(sha) and sha not in keep and self._modified_s(name) < older_than_s:
                self._store.rm_file(name)
                gone += 1
        return gone

    def _modified_s(self, name: str) -> float:
        """Return the time of the last write in unix seconds.

        Infinity if the store does not know it, so that `sweep` keeps the blob.
        """
        try:
            return float(self._store.modified(name).timestamp())
        except (NotImplementedError, AttributeError, KeyError):
            return float("inf")

    def _name(self, sha: str) -> str:
        _check(sha)
        return f"{self._root}/{sha[:2]}/{sha}"


def open_blobs(where: str | Path, *, durable: bool = True) -> Blobs:
    """Open the blob store at a folder or URL.

    `where` is a path, a file:// URL, or a URL that fsspec supports (s3://bucket/prefix ...). Raises
    MissingExtra if a library for the URL is not installed.
    """
    text = str(where)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    return UrlBlobs(text) if "://" in text else Blobs(Path(text), durable=durable)


def _check(sha: str) -> None:
    """Raise Invalid unless `sha` is a SHA-256 in hex.

    It comes from outside and becomes part of a path.
    """
    if not _SHA.match(sha):
        raise Invalid(f"{sha[:80]!r} is not a SHA-256 in hex", remedy="64 digits, 0-9 and a-f")


def _missing(sha: str) -> BlobMissing:
    return BlobMissing(
        f"there is no blob {sha[:12]}… in the store",
        remedy="it was deleted with the records that used it, or was never stored: send it again",
    )


@contextlib.contextmanager
def _disk() -> Any:
    try:
        yield
    except OSError as e:
        if e.errno in NO_SPACE:
            raise DiskFull("no space for a blob", remedy="free space on the disk that holds the blobs") from e
        raise
