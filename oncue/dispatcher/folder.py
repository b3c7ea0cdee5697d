"""Files of a server in its data folder: lock, keys, ports, derived databases.

`log.id` names the log from which view and windows were derived.
"""

from __future__ import annotations

import logging
from pathlib import Path

from oncue import curve
from oncue.config import Settings, make_data_folder
from oncue.log.folder_lock import FolderLock

log = logging.getLogger("oncue.server")


class DataFolder:
    """A server's data folder. One process at a time may lock it."""

    def __init__(self, settings: Settings) -> None:
        self.path = settings.data_path
        make_data_folder(self.path)
        self._lock: FolderLock | None = None

    def lock(self) -> None:
        """Lock the folder. Raises LogLocked if another server has it.

        A log on Kafka does not keep two servers of one folder apart.
        """
        self._lock = FolderLock(self.path)

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
        return _port(self.path / "http.port")

    def set_http_port(self, port: int) -> None:
        """Store the API's port: clients know it."""
        (self.path / "http.port").write_text(str(port))

    def last_bridge_port(self) -> int:
        """Return the bridge's port of the last time; 0 if there is none."""
        return _port(self.path / "bridge.port")

    def set_bridge_port(self, port: int) -> None:
        """Store the bridge's port: agents know it."""
        (self.path / "bridge.port").write_text(str(port))

    # ------------------------------------------------------------ the log

    def forget_other_log(self, identity: str) -> None:
        """Delete databases derived from another log, because its offsets differ.

        `identity`: of the log that is open now. It changes with `oncue up --log`.
        """
        note = self.path / "log.id"
        before = note.read_text() if note.exists() else "sqlite"
        if before != identity and (note.exists() or self.view.exists()):
            log.warning(
                "the log is another one (%s, before %s): the view and the state of stateful rules are rebuilt",
                identity,
                before,
            )
            for name in ("view.db", "windows.db"):
                for path in self.path.glob(name + "*"):
                    path.unlink()
            (self.path / "marks.json").unlink(missing_ok=True)
        note.write_text(identity)


def _port(path: Path) -> int:
    return int(path.read_text() or 0) if path.exists() else 0
