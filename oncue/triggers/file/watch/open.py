"""Chooses the watch of this system, and recognises network mounts."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

from oncue.triggers.file.stability import may_ask_about_others
from oncue.triggers.file.watch.base import FolderWatch
from oncue.triggers.file.watch.scan_only import ScanOnlyWatch

NETWORK_TYPES = (
    "nfs nfs4 cifs smb3 smbfs lustre gpfs beegfs ceph afs panfs pvfs2 orangefs glusterfs 9p virtiofs"
    " fuse.sshfs fuse.glusterfs fuse.beegfs fuse.ceph fuse.juicefs fuse.s3fs fuse.rclone"
)


def open_watch(root: Path, system: str = sys.platform) -> FolderWatch:
    """Open the watch of this system: inotify on Linux, else watchdog's observer.

    At the kernel's limits for this user: a ScanOnlyWatch. Raises OSError (the
    folder is missing, no permission).
    """
    if system == "linux":
        from oncue.triggers.file.watch.inotify import InotifyWatch

        try:
            return InotifyWatch(root, opens=not may_ask_about_others())
        except OSError as e:
            if e.errno not in (errno.EMFILE, errno.ENOSPC):
                raise
            return ScanOnlyWatch(str(e.strerror))
    from oncue.triggers.file.watch.watchdog import ObserverWatch

    return ObserverWatch(root)


def network_mount(root: Path) -> str:
    """Return the type of the folder's network filesystem; "": it is local.

    Known on Linux only. A network mount needs scans: the kernel reports the changes that this
    machine makes, not those of other nodes.
    """
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
