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

from oncue.processes.lock_holder import holder_pid


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


def answers(url: str, path: str = "/health/live", timeout_s: float = 2.0, token: str = "") -> bool:
    """Return True if GET `path` answers 200."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=timeout_s)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def ready_text(port: int) -> str:
    """Return what the server at this port of this machine says about its health."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2.0)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().read(65_536).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def alive(pid: int) -> bool:
    """Return True if a process with this pid exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


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
