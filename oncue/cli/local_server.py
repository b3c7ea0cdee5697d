"""Server of a data folder: found by its `local.json`, checked over HTTP."""

from __future__ import annotations

import http.client
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from oncue.processes.file_lock import holder_pid

TIMEOUT_S = 2.0  # of a request


def local_server(data: Path) -> dict[str, Any] | None:
    """Return the running server's `local.json` (url, token, pid).

    None if no server runs.

    A file that a killed server left, or that was copied with its folder, is ignored: its pid is
    gone, its URL does not answer, or nobody holds the folder's lock.
    """
    try:
        local: dict[str, Any] = msgspec.json.decode((data / "local.json").read_bytes())
        os.kill(int(local["pid"]), 0)
    except (OSError, msgspec.MsgspecError, KeyError, ValueError, TypeError):
        return None
    return local if answers(str(local["url"])) and holder_pid(data / "lock") else None


def answers(url: str, path: str = "/health/live", token: str = "") -> bool:
    """Return True if GET `path` answers 200."""
    return _get(url, path, token)[0] == 200


def ready_text(port: int) -> str:
    """Return what the server at this port of this machine says about its health."""
    return _get(f"http://127.0.0.1:{port}", "/health/ready")[1]


def _get(url: str, path: str, token: str = "") -> tuple[int, str]:
    """Return status and body; 0 and "" without an answer."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        return answer.status, answer.read(65_536).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()


def await_true(condition: Callable[[], bool], timeout_s: float, pause_s: float = 0.05) -> bool:
    """Poll until `condition` holds: other processes send no event.

    Return False on timeout.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
    return True
