"""Routes of blobs.

They are named by SHA-256 and streamed, never whole in memory.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from oncue.dispatcher.http.route import OCTETS, RequestContext, Route
from oncue.dispatcher.http.schemas import BlobInfo
from oncue.dispatcher.http.streams import serve_stream
from oncue.errors import BlobMissing, Conflict, DiskFull, Invalid, Malformed, UnsupportedType
from oncue.protocol.api import BlobsMissing, BlobsRequest

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


def _hash(context: RequestContext) -> str:
    text = context.path("sha256")
    if not _SHA256.match(text):
        raise Invalid(
            f"{text[:100]!r} is not a SHA-256 - at the path", remedy="a blob is named by 64 hex digits", path="sha256"
        )
    return text


async def put(context: RequestContext) -> BlobInfo:
    sha256, size = _hash(context), context.request.content_length
    if size is None:
        raise Malformed("there is no Content-Length", remedy="say how many bytes come; a blob is not sent in chunks")
    if context.request.headers.get("Content-Encoding", "identity") != "identity":
        raise UnsupportedType("the blob is compressed on its way", remedy="send the bytes as they are")
    await context.backend.blobs.put(context.caller, sha256, size, _parts(context.request, size))
    return BlobInfo(sha256=sha256, size_bytes=size)


async def _parts(request: web.Request, size: int) -> AsyncIterator[bytes]:
    """Yield the body as it arrives. Raises Malformed if it ends before its length."""
    seen = 0
    try:
        async for part in request.content.iter_any():
            seen += len(part)
            yield part
    except (HttpProcessingError, web.RequestPayloadError, ConnectionError) as e:
        raise Malformed(f"the upload broke off after {seen:,} of {size:,} bytes", remedy="send it again") from e
    if seen != size:
        raise Malformed(f"the upload ended after {seen:,} of {size:,} bytes", remedy="send it again")


async def get(context: RequestContext) -> web.StreamResponse:
    sha256 = _hash(context)
    size, parts = await context.backend.blobs.get(context.caller, sha256)
    response = web.StreamResponse(
        headers={
            "Content-Type": OCTETS,
            "Content-Length": str(size),
            "ETag": f'"{sha256}"',
            "X-Content-Type-Options": "nosniff",
            "Content-Disposition": "attachment",
        }
    )
    return await serve_stream(context.stream(), response, parts, bytes, grace_s=1.0, length=size)


async def missing(context: RequestContext) -> BlobsMissing:
    request: BlobsRequest = context.body
    return BlobsMissing(missing=await context.backend.blobs.missing(request.sha256))


ROUTES = (
    Route(
        "POST",
        "/v1/blobs/missing",
        missing,
        summary="Which blobs the store does not have; the others stay as long as new ones.",
        scope="user",
        takes=BlobsRequest,
        gives=BlobsMissing,
    ),
    Route(
        "PUT",
        "/v1/blobs/{sha256:(?!missing$)[^/]+}",  # that is a path of its own
        put,
        summary="Store a large payload under the SHA-256 of its content. 201: it is durable.",
        scope="user",
        reads=(OCTETS,),
        takes_doc=bytes,
        gives=BlobInfo,
        status=201,
        streamed=True,
        errors=(Malformed, Conflict, DiskFull),
    ),
    Route(
        "GET",
        "/v1/blobs/{sha256:(?!missing$)[^/]+}",
        get,
        summary="A large payload.",
        scope="read",
        gives=bytes,
        writes=(OCTETS,),
        streamed=True,
        errors=(BlobMissing,),
    ),
)
