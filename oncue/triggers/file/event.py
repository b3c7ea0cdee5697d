"""CloudEvent of a ready file."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from datetime import UTC, datetime
from urllib.parse import quote

from oncue.protocol.records import Event
from oncue.triggers.file.options import FileOptions, FileSpec
from oncue.triggers.file.stability import FileKey, Fingerprint

LOOPS_ALLOWED = "oncueloops"  # extension of the events of a trigger with `loops: allow`
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")  # a CloudEvents attribute may not hold these
_MOST_MS = (1 << 48) - 1


class EventMaker:
    """Builds the events of one trigger.

    type     oncue.file.ready
    source   file:///data/2bm: the watched folder
    subject  the path relative to it; percent-encoded where it holds control characters
    id       a hash of trigger, folder, path and the file's inode, size and modification time:
             the same state of the same file always has the same id, on any server; with the
             ctime if another content with the same three has fired before
    data     path, name, stem, folder (that holds the file), relative, size (bytes),
             mtime (unix seconds), trigger, host, cause (close_write, rename, stable, rescan)

    Extensions:

    oncuetrigger  the trigger's name
    oncuetimems   the file's ctime in ms, for the time bits of task ids: it repeats as the id does
    oncuemarkus   when the notice was read, in unix µs

    The last two are texts, since integers of CloudEvents have 32 bits.
    """

    def __init__(self, name: str, spec: FileSpec) -> None:
        self._name, self._root = name, str(spec.root)
        self._source = "file://" + quote(self._root, errors="surrogateescape")
        self._more = {LOOPS_ALLOWED: "allow"} if spec.loops else {}
        self._host = socket.gethostname()
        self._seed = f"{name}\0{self._root}\0".encode("utf-8", "surrogateescape")

    def make(
        self,
        key: FileKey,
        st: os.stat_result,
        seen: Fingerprint,
        cause: str,
        noticed_us: int,
        now_us: int,
        again: bool = False,
    ) -> Event:
        folder, name = key
        relative = f"{folder}/{name}" if folder else name
        state = f"{relative}\0{seen.ino}\0{seen.size}\0{seen.mtime_ns}".encode()
        if again:
            state += f"\0{st.st_ctime_ns}".encode()
        held = f"{self._root}/{folder}" if folder else self._root
        time_ms = min(max(st.st_ctime_ns // 1_000_000, 0), _MOST_MS)
        return Event(
            id=hashlib.blake2b(self._seed + state, digest_size=16).hexdigest(),
            source=self._source,
            type=FileOptions.TYPE,
            subject=quote(relative) if _CONTROL.search(relative) else relative,
            time=datetime.fromtimestamp(now_us / 1e6, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            datacontenttype="application/json",
            data={
                "path": f"{held}/{name}",
                "name": name,
                "stem": os.path.splitext(name)[0],
                "folder": held,
                "relative": relative,
                "size": seen.size,
                "mtime": seen.mtime_ns / 1e9,
                "trigger": self._name,
                "host": self._host,
                "cause": cause,
            },
            extensions={
                "oncuetrigger": self._name,
                "oncuetimems": str(time_ms),
                "oncuemarkus": str(noticed_us),
                **self._more,
            },
        )
