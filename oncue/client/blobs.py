"""Upload and download blobs: large payloads, named and checked by their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import msgspec

from oncue.client.http import Http
from oncue.errors import BlobMissing, MethodNotAllowed, NotFound
from oncue.protocol.api import BlobsMissing, BlobsRequest
from oncue.protocol.payload import BODY_BYTES, BlobName, PackedApart, Ref, needs_blob, pack_ref

PART_BYTES = 1 << 20
CHECKED_BYTES = 1 << 20  # from this size on, the server is asked first whether it has the blob
Progress = Callable[[int, int], None]  # (bytes done, bytes in all)


def put_blob(http: Http, content: bytes, progress: Progress | None = None) -> Ref:
    """Upload a blob; return its reference once it is durable. Idempotent.

    Raises Unreachable, TooLarge, DiskFull.
    """
    sha256 = hashlib.sha256(content).hexdigest()
    if len(content) < CHECKED_BYTES or missing(http, [sha256]):
        _put(http, sha256, [memoryview(content)], progress)
    return Ref(sha256, len(content))


def send_apart(http: Http, packed: PackedApart) -> bytes:
    """Upload what the server does not have; return the payload. Raises as `put_blob`."""
    if not packed.buffers and not packed.objects:
        return pack_ref(put_blob(http, packed.body)) if needs_blob(packed.body) else packed.body
    names = [BlobName(buffer.sha256(), buffer.size_bytes) for buffer in packed.buffers]
    buffers = {name.sha256: buffer for name, buffer in zip(names, packed.buffers, strict=True)}
    for sha256 in missing(http, list(buffers)):
        _put(http, sha256, [memoryview(buffers[sha256].header), buffers[sha256].content])
    blobs = names + packed.objects
    if len(packed.body) <= BODY_BYTES:
        return pack_ref(Ref(blobs[0].sha256, blobs[0].size_bytes, body=packed.body, more=tuple(blobs[1:])))
    body = put_blob(http, packed.body)  # without buffers
    return pack_ref(Ref(body.sha256, body.size_bytes, more=tuple(blobs)))


def missing(http: Http, wanted: list[str]) -> list[str]:
    """Return which of these blobs the server does not have.

    It keeps the others a while. Raises Unreachable.
    """
    if not wanted:
        return []
    wanted = list(dict.fromkeys(wanted))
    body = msgspec.json.encode(BlobsRequest(sha256=wanted))
    try:
        answer = http.request("POST", "/v1/blobs/missing", body, repeat=True)
    except MethodNotAllowed:  # an older server
        return wanted
    return msgspec.json.decode(answer.body, type=BlobsMissing).missing


def _put(http: Http, sha256: str, pieces: list[memoryview], progress: Progress | None = None) -> None:
    size = sum(piece.nbytes for piece in pieces)

    def parts() -> Iterator[memoryview]:
        done = 0
        for piece in pieces:
            for start in range(0, piece.nbytes, PART_BYTES):
                part = piece[start : start + PART_BYTES]
                yield part
                done += part.nbytes
                if progress is not None:
                    progress(done, size)

    http.request("PUT", f"/v1/blobs/{sha256}", parts, kind="application/octet-stream", size=size)


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
