"""Is a folder on a network mount? SQLite's write-ahead log needs memory shared between its readers and locks that hold,
and neither works on NFS, Lustre, GPFS or SMB (https://www.sqlite.org/wal.html, "Disadvantages", 2).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import psutil

Mount = tuple[str, str]  # (mount point, file system type)

NETWORK = frozenset(
    {
        "afpfs",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "davfs",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs3",
        "nfs4",
        "ocfs2",
        "orangefs",
        "panfs",
        "pvfs2",
        "smb",
        "smb2",
        "smb3",
        "smbfs",
        "sshfs",
        "webdav",
        "wekafs",
    }
)
# FUSE hides what is behind it (sshfs, s3fs, rclone, glusterfs ...), so all but these count as network.
LOCAL_FUSE = frozenset({"fuse.fuse-overlayfs", "fuse.lxcfs", "fuse.bindfs", "fuse.gocryptfs", "fuse.encfs"})


def network_mount(path: str | Path, mounts: Iterable[Mount] | None = None) -> str | None:
    """The type of the network file system that holds the path (which need not exist yet), such as "nfs4"; None when it
    is local. `mounts` in the order in which they were mounted; None: ask the system."""
    kind = _kind_of(Path(path).expanduser().absolute(), _system_mounts() if mounts is None else mounts)
    if kind in NETWORK or (kind.startswith(("fuse.", "osxfuse", "macfuse")) and kind not in LOCAL_FUSE):
        return kind
    return None


def _kind_of(path: Path, mounts: Iterable[Mount]) -> str:
    place = _nearest(path)
    best, kind = -1, ""
    for point, found in mounts:
        # The longest mount point wins; of two on the same point, the one mounted last is what one sees.
        if len(point) >= best and place.is_relative_to(point):
            best, kind = len(point), found.lower()
    return kind


def _nearest(path: Path) -> Path:
    """Without links, as far as it exists: a link in the home may well lead to the parallel file system."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path


def _system_mounts() -> list[Mount]:
    try:
        lines = Path("/proc/self/mounts").read_text(errors="surrogateescape").splitlines()
    except OSError:  # not Linux
        return [(p.mountpoint, p.fstype) for p in psutil.disk_partitions(all=True)]
    fields = (line.split(" ") for line in lines)
    return [(_unescape(f[1]), f[2]) for f in fields if len(f) > 2]


def _unescape(text: str) -> str:
    """The kernel writes blanks, tabs, line ends and backslashes of a mount point in octal."""
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text)
