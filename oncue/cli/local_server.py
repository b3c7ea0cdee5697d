"""Is a server running in this data folder? What `local.json` says, and whether it is true."""

from __future__ import annotations

import http.client
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec


def local_server(data: Path) -> dict[str, Any] | None:
    """What the running server wrote (url, token, pid); None when none runs. A file left by a server that was killed is
    seen through: its pid is gone, or nobody answers there."""
    try:
        local: dict[str, Any] = msgspec.json.decode((data / "local.json").read_bytes())
        os.kill(int(local["pid"]), 0)
    except (OSError, msgspec.MsgspecError, KeyError, ValueError, TypeError):
        return None
    return local if answers(str(local["url"])) else None


def answers(url: str, path: str = "/health/live", timeout_s: float = 2.0, token: str = "") -> bool:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=timeout_s)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def await_true(what: Callable[[], bool], timeout_s: float, pause_s: float = 0.05) -> bool:
    """For states of other processes, which send no event."""
    deadline = time.monotonic() + timeout_s
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
    return True
