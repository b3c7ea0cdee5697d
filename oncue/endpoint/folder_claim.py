"""Claim of an endpoint's folder by the process that runs its agent.

The lock keeps out other agents on this machine. On a file system whose locks do not reach other
machines, a second login node's agent would get the lock, too. So the claim names the host, and its
file is touched every BEAT_S seconds: an agent of another host waits until it is SILENT_S old.

`claim.json` is removed when the agent ends in order. It also names its own inode, so that a copied
folder is not taken for the same one.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from oncue.errors import Conflict

NAME = "claim.json"
BEAT_S, SILENT_S = 4.0, 12.0


class Claim(msgspec.Struct, frozen=True):
    """Content of `claim.json`."""

    host: str
    pid: int
    boot: str  # hex, of the agent's process
    inode: int  # of this file


class FolderClaim:
    """The claim that this process holds. Take it under the folder's lock."""

    def __init__(self, folder: Path, host: str, boot: bytes, log: Callable[[str], None] = lambda text: None) -> None:
        """Take the folder over from a former process.

        Raises Conflict if an agent on another machine is alive.
        """
        self._path = folder / NAME
        former = read_claim(folder)
        if former is not None and former.host != host:
            _await_silence(self._path, former, log)
        #: `boot` of the former process, if it surely has ended: this host's locks told so.
        self.after = b""
        if former is not None and former.host == host and former.inode == _inode(self._path):
            self.after = bytes.fromhex(former.boot)
        try:
            self._write(Claim(host, os.getpid(), boot.hex(), 0))
        except OSError as e:  # a full disk: the lock and the server fence a second agent all the same
            log(f"{self._path} cannot be written: {e.strerror}")
        self._beat_at = time.monotonic()

    def _write(self, claim: Claim) -> None:
        fresh = self._path.with_name(f"{NAME}.new")
        try:
            with fresh.open("wb") as f:
                f.write(msgspec.json.encode(msgspec.structs.replace(claim, inode=os.fstat(f.fileno()).st_ino)))
            fresh.replace(self._path)
        finally:
            fresh.unlink(missing_ok=True)

    def beat(self) -> None:
        """Show that this process is alive; does something every BEAT_S seconds."""
        now = time.monotonic()
        if now - self._beat_at >= BEAT_S:
            self._beat_at = now
            with contextlib.suppress(OSError):  # the disk is full or away: the next one may succeed
                os.utime(self._path)

    def release(self) -> None:
        """Give the claim up; the next agent need not wait."""
        with contextlib.suppress(OSError):
            self._path.unlink()


def read_claim(folder: Path) -> Claim | None:
    """Return the claim on this folder; None if there is none, or it cannot be read."""
    try:
        claim = msgspec.json.decode((folder / NAME).read_bytes(), type=Claim)
        bytes.fromhex(claim.boot)
    except (OSError, ValueError):  # msgspec's errors are ValueErrors
        return None
    return claim


def _await_silence(path: Path, former: Claim, log: Callable[[str], None]) -> None:
    """Return when the other machine's agent was silent for SILENT_S seconds."""
    seen = _changed_s(path)
    if seen is None:
        return
    left = SILENT_S - (_server_time_s(path.parent) - seen)
    if left > 0:
        log(f"this folder's agent ran on {former.host} (pid {former.pid}): waiting {left:.0f} s whether it still does")
    deadline = time.monotonic() + min(left, SILENT_S)
    while time.monotonic() < deadline:
        time.sleep(0.2)
        now = _changed_s(path)
        if now is None:
            return
        if now != seen:
            raise Conflict(
                f"an agent runs in {path.parent} on another machine: {former.host}, pid {former.pid}",
                remedy=f"stop it there (oncue endpoint stop, on {former.host}), or give this one another folder and name",
            )


def _changed_s(path: Path) -> float | None:
    """Return when the claim was last touched; None if its agent has ended in order."""
    try:
        with path.open("rb") as f:  # NFS asks its server when a file is opened
            return os.fstat(f.fileno()).st_mtime
    except FileNotFoundError:
        return None


def _server_time_s(folder: Path) -> float:
    """Return the time by the clock of the machine that keeps the folder."""
    probe = folder / f".time-{os.getpid()}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:  # a full disk
        return time.time()
    finally:
        probe.unlink(missing_ok=True)


def _inode(path: Path) -> int:
    return path.stat().st_ino
