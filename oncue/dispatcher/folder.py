"""Files of a server in its data folder: lock, keys, ports, derived databases.

`log.id` names the log from which view and windows were derived.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path

from oncue import curve
from oncue.backup.restore import MARKER as RESTORING
from oncue.config import Settings, make_data_folder
from oncue.disk.durable_files import replace_file
from oncue.disk.private_files import close_to_others
from oncue.errors import Conflict
from oncue.log.folder_lock import lock_folder
from oncue.processes.file_lock import FileLock

log = logging.getLogger("oncue.server")
EMBEDDED = "sqlite"  # begins the identity of an embedded log
DERIVED = ("view.db", "windows.db")
#: Written when files were set aside; `oncue doctor` shows it until somebody deletes it.
DIVERGED = "diverged.json"


class DataFolder:
    """A server's data folder. One process at a time may lock it."""

    def __init__(self, settings: Settings) -> None:
        self.path = settings.data_path
        make_data_folder(self.path)
        close_to_others(self.path)
        self._lock: FileLock | None = None

    def lock(self) -> None:
        """Lock the folder. Raises LogLocked if another server has it, Conflict.

        A log on Kafka does not keep two servers of one folder apart.
        """
        self._lock = lock_folder(self.path)
        if (self.path / RESTORING).exists():
            self.release()
            raise Conflict(
                f"a restore of {self.path} was interrupted", remedy="finish it: oncue restore DIR, with the same backup"
            )

    def release(self) -> None:
        """Unlock the folder."""
        if self._lock is not None:
            self._lock.release()

    @property
    def view(self) -> Path:
        """The view's database."""
        return self.path / "view.db"

    @property
    def blobs(self) -> Path:
        """Blobs, if no `blobs_folder` is set."""
        return self.path / "blobs"

    @property
    def triggers(self) -> Path:
        """State of the triggers, a folder each."""
        return self.path / "triggers"

    @property
    def windows(self) -> Path:
        """State of the stateful rules on an embedded log."""
        return self.path / "windows.db"

    @property
    def local_json(self) -> Path:
        """Address and token for the person who started the server."""
        return self.path / "local.json"

    def bridge_keys(self) -> curve.Keys:
        """Return the bridge's CURVE keys; made at the first start."""
        return curve.load_or_make_keys(self.path / "bridge.key")

    # ------------------------------------------------------------ ports

    def last_http_port(self) -> int:
        """Return the API's port of the last time; 0 if there is none."""
        return last_http_port(self.path)

    def set_http_port(self, port: int) -> None:
        """Store the API's port: clients know it."""
        replace_file(self.path / "http.port", str(port).encode())

    def last_bridge_port(self) -> int:
        """Return the bridge's port of the last time; 0 if there is none."""
        return _port(self.path / "bridge.port")

    def set_bridge_port(self, port: int) -> None:
        """Store the bridge's port: agents know it."""
        replace_file(self.path / "bridge.port", str(port).encode())

    # ------------------------------------------------------------ the log

    def set_aside_of_other_log(self, identity: str) -> None:
        """Set aside the databases derived from another log, because its offsets differ.

        `identity`: of the log that is open now. It changes with `oncue up --log`, and if the folder
        of an embedded log is removed.
        """
        note = self.path / "log.id"
        before = note.read_text() if note.exists() else EMBEDDED
        # Earlier versions noted no more than its kind of an embedded log.
        same = before == identity or (before == EMBEDDED and identity.startswith(EMBEDDED))
        if not same and (note.exists() or self.view.exists()):
            self.set_aside(f"the log is another one: {identity}, before: {before}")
        replace_file(note, identity.encode())

    def set_aside(self, reason: str, missing: Mapping[str, int] | None = None) -> Path | None:
        """Move what was derived from another state of the log away; it is built again.

        The databases must be closed. Returns the folder that has them now, or None if there were
        none. `missing`: records of each topic that the log does not have.
        """
        found = sorted((p for p in self.path.iterdir() if _is_derived(p.name)), key=_in_order)
        if not found:
            return None
        kept = self.path / "aside" / time.strftime("%Y%m%dT%H%M%S")
        while kept.exists():
            kept = kept.with_name(kept.name + "-2")
        kept.mkdir(parents=True, mode=0o700)
        for path in found:
            path.rename(kept / path.name)
        note = {"at": time.time(), "reason": reason, "kept": str(kept), "missing": dict(missing or {})}
        replace_file(self.path / DIVERGED, json.dumps(note).encode())
        log.error(
            "%s. The view and the state of stateful rules are built again from the log. The old files are kept in %s:"
            " what only they have, the log cannot give back",
            reason,
            kept,
        )
        return kept

    # ------------------------------------------------------------ the blobs

    def trouble_of_blobs(self, log_identity: str, store: str) -> str:
        """Return what is wrong if the log's blobs were in another store before; else "".

        `store`: the identity of the store that is open now.
        """
        note = self.path / "blobs.id"
        log_before, _, before = (note.read_text() if note.exists() else "").partition("\n")
        if log_before == log_identity and before != store:
            why = (
                f"not ok: this is another store of blobs than before, so large arguments of accepted tasks may be missing."
                f" Put the former one back (is its disk mounted?), or delete {note} if it was replaced on purpose;"
                " then restart"
            )
            log.error("blobs: %s", why)
            return why
        replace_file(note, f"{log_identity}\n{store}".encode())
        return ""


def _is_derived(name: str) -> bool:
    return name == "marks.json" or any(name in (db, f"{db}-wal", f"{db}-shm") for db in DERIVED)


def _in_order(path: Path) -> bool:
    """Sort databases last: a new one must not find the write-ahead log of the old one."""
    return path.name in DERIVED


def last_http_port(data: Path) -> int:
    """Return the API's port of the last server in this folder; 0 if none ran."""
    return _port(data / "http.port")


def _port(path: Path) -> int:
    return int(path.read_text() or 0) if path.exists() else 0
