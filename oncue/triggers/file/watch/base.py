"""What tells a file trigger that something happened below its folder: the seam, and which one this machine has.

    kernel ──► Watch.read() ──► [Notice, ...] ──► lookout

Paths are (folder, name): the folder relative to the watched one with slashes ("" is the watched one itself), as
`os.fsdecode` gives them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple, Protocol

# What was noticed about a file: bits, so that several add up ...
CLOSED = 1  # a writer closed it
RENAMED = 2  # it was renamed, or linked, to this name
FOUND = 4  # a scan met it: nobody knows how it came
HINT = 8  # something changed, on a system that does not tell of closes
CREATED = 128  # it has a name now: the start of a write, or a link to a file that is whole
# ... and about folders.
ENTERED = 16  # a folder is new, or has a new name: scan it
OVERFLOW = 32  # the kernel lost events: scan everything
LOST = 64  # the watched folder itself went away

NETWORK_TYPES = (
    "nfs nfs4 cifs smb3 smbfs lustre gpfs beegfs ceph afs panfs pvfs2 orangefs glusterfs 9p virtiofs"
    " fuse.sshfs fuse.glusterfs fuse.beegfs fuse.ceph fuse.juicefs fuse.s3fs fuse.rclone"
)


class Notice(NamedTuple):
    kind: int
    folder: str
    name: str
    at_us: int  # when the kernel told us


class Watch(Protocol):
    tells_closes: bool

    def add(self, folder: str) -> None:
        """Watch this folder (not what is below it). Again is harmless. Raises OSError."""
        ...

    def read(self, timeout_s: float) -> list[Notice]:
        """What happened since; waits for it, or until `wake`. Raises OSError."""
        ...

    def wake(self) -> None:
        """End a `read`, from any thread."""
        ...

    def close(self) -> None: ...


def open_watch(root: Path, system: str = sys.platform) -> Watch:
    """The watch that this system has. Raises OSError (the folder is missing, no permission, kernel's limits)."""
    if system == "linux":
        from oncue.triggers.file.watch.inotify import InotifyWatch

        return InotifyWatch(root)
    from oncue.triggers.file.watch.watchdog import ObserverWatch

    return ObserverWatch(root)


def network_mount(root: Path) -> str:
    """The type of the network filesystem that holds the folder (on Linux); "" for a local one.

    The kernel tells only of what this machine does there: other nodes' writes are seen by scans."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    best, kind = "", ""
    for line in lines:  # proc(5): ... (5) mount point ... " - " type source options
        left, _, right = line.partition(" - ")
        point = left.split(" ")[4].replace("\\040", " ")
        inside = str(root) == point or str(root).startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, right.split(" ")[0]
    return kind if kind in NETWORK_TYPES.split() else ""
