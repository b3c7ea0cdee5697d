"""Stands in for a server that cannot start because its disk is full.

    start fails ──► delete the ballast, if there is one ──► start again
                └─► answer HTTP: health says why, all else 503 ──► there is space ──► start again

Starting again replaces the process (exec), so that nothing of the failed start is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import sys
from pathlib import Path

from oncue.config import Settings
from oncue.disk.space import NO_SPACE, free_bytes, is_nearly_full
from oncue.dispatcher.http.app import bind_address
from oncue.dispatcher.http.starting import StartingApi
from oncue.errors import DiskFull, OncueError
from oncue.log.sqlite.ballast import Ballast

log = logging.getLogger("oncue.server")
ENOUGH_BYTES = 8 << 20  # for a start
#: Without a path: anybody may ask.
WAITING = "the disk of the data folder is full; free some space there, and the server starts by itself"
POLL_S, PAUSE_S = 1.0, 5.0  # between looks; before the first: each try writes a little


def is_full(error: BaseException, folder: Path) -> bool:
    """Return True if a start failed for lack of space."""
    if isinstance(error, DiskFull):
        return True
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return True
    if not isinstance(error, OncueError | OSError | sqlite3.Error):
        return False
    return is_nearly_full(folder)


async def wait_for_space(settings: Settings, last_port: int, error: BaseException, stopping: asyncio.Event) -> bool:
    """Return True once there is space; False if the process shall stop.

    Until then answer HTTP. Raises Conflict, Invalid if that is not possible.
    """
    data = settings.data_path
    log.error("the server cannot start yet: %s", error)
    if Ballast(data / "log").release():
        return True
    sockets = await bind_address(settings, last_port)
    starting = StartingApi(sockets, settings, lambda: WAITING)
    log.error("the disk of %s is full: until there is space, only health is answered", data)
    try:
        pause = PAUSE_S
        while not stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await stopping.wait()
            pause = POLL_S
            if not stopping.is_set() and free_bytes(data) >= ENOUGH_BYTES:
                log.warning("there is space again: starting")
                return True
        return False
    finally:
        await starting.close()
        for bound in sockets:
            bound.close()


def start_again() -> None:
    """Replace this process by a new one with the same arguments."""
    for name in os.listdir("/dev/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):
                os.set_inheritable(int(name), False)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
