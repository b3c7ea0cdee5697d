"""Bodies of `/v1/me` and `/health`."""

from __future__ import annotations

from oncue.protocol.api.base import Response
from oncue.protocol.codec import build_decoders


class Me(Response, frozen=True):
    """The caller and the server."""

    subject: str
    scopes: list[str]
    server: str  # version
    server_id: str
    token: str = ""  # id of the caller's token; "": another login
    expires_us: int = 0  # when it expires; 0: never


class Health(Response, frozen=True):
    """The server's health."""

    status: str  # ok, starting, degraded
    version: str
    checks: dict[str, str] = {}  # name -> "ok" or the fault; without a token only "not ok"
    triggers: dict[str, str] = {}  # triggers that do not run -> reason; with a token only


build_decoders(globals())
