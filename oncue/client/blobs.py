"""Upload and download blobs: large payloads, named and checked by their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

from oncue.client.http import Http
from oncue.errors import BlobMissing, NotFound
from oncue.protocol.payload import Ref

PART_BYTES = 1 << 20
Progress = Callable[[int, int], None]  # (bytes done, bytes in all)


def put_blob(http: Http, content: bytes, progress: Progress | None = None) -> Ref:
    """Upload a blob; return its reference once it is durable. Idempotent.

    Raises Unreachable, TooLarge, DiskFull.
    """
    sha256 = hashlib.sha256(content).hexdigest()
    view, size = memoryview(content), len(content)

    def parts() -> Iterator[memoryview]:
        for start in range(0, size, PART_BYTES):
            yield view[start : start + PART_BYTES]
            if progress is not None:
                progress(min(start + PART_BYTES, size), size)

    http.request("PUT", f"/v1/blobs/{sha256}", parts, kind="application/octet-stream", size=size)
    return Ref(sha256, size)


def fetch_blob(http: Http, ref: Ref) -> bytes:
    """Download a blob. Raises BlobMissing if it is gone or corrupt."""
    try:
        content = http.request("GET", f"/v1/blobs/{ref.sha256}").body
    except NotFound as e:
        raise BlobMissing(f"the blob {ref.sha256} is not there: {e.message}", remedy="run the task again") from None
    if len(content) != ref.size_bytes or hashlib.sha256(content).hexdigest() != ref.sha256:
        raise BlobMissing(
            f"the blob {ref.sha256} came with other bytes ({len(content):,} of {ref.size_bytes:,})",
            remedy="run the task again; if that repeats, look at the server's disk",
        )
    return content
