"""Route of the view snapshot, which a new server copies."""

from __future__ import annotations

from aiohttp import web

from oncue.dispatcher.http.route import OCTETS, RequestContext, Route
from oncue.dispatcher.http.streams import serve_stream
from oncue.errors import DiskFull, RateLimited


async def get(context: RequestContext) -> web.StreamResponse:
    size, parts = await context.backend.view_snapshots.create(context.caller)
    headers = {"Content-Type": OCTETS, "Content-Length": str(size), "X-Content-Type-Options": "nosniff"}
    response = web.StreamResponse(headers=headers | {"Content-Disposition": "attachment"})
    return await serve_stream(context.stream(), response, parts, bytes, grace_s=1.0, length=size)


ROUTES = (
    Route(
        "GET",
        "/v1/view",
        get,
        summary="This server's view, with the log's offsets up to which it goes, as a SQLite file: for a server that joins.",
        scope="admin",
        gives=bytes,
        writes=(OCTETS,),
        streamed=True,
        errors=(DiskFull, RateLimited),
    ),
)
