"""Discover the server and the token to use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from oncue.errors import Unauthorized, Unreachable


def find_server(url: str, token: str, folder: Path) -> tuple[str, str]:
    """Return (url, token) of the server.

    They come from the arguments, else the environment, else the file that `oncue up` wrote to the
    data folder. Each connection calls this, because a restarted local server may have another port.
    The local server's token is sent to no other server.
    Raises Unreachable if no server is known, Unauthorized if there is no token for it.
    """
    url = (url or os.environ.get("ONCUE_URL", "")).rstrip("/")
    token = token or os.environ.get("ONCUE_TOKEN", "")
    if url and token:
        return url, token
    path = folder / "local.json"
    try:
        local = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        found, secret = str(local["url"]).rstrip("/"), str(local["token"])
    except (OSError, KeyError, msgspec.MsgspecError) as e:
        if url:
            raise _no_token(url) from None
        raise Unreachable(
            f"no server is known: {path} cannot be read ({type(e).__name__})",
            remedy="start one with `oncue up`, or set ONCUE_URL and ONCUE_TOKEN",
        ) from None
    if url and url != found and not token:
        raise _no_token(url)
    return url or found, token or secret


def _no_token(url: str) -> Unauthorized:
    return Unauthorized(
        f"there is no token for the server at {url}",
        remedy="set ONCUE_TOKEN, or pass token= to Client(); an admin of that server makes one:"
        " oncue tokens create YOU",
    )
