"""Detection of folders on network mounts.

SQLite's write-ahead log needs shared memory and reliable locks. Neither works on NFS, Lustre, GPFS
or SMB (https://www.sqlite.org/wal.html, "Disadvantages", 2).
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
# FUSE hides the file system behind it (sshfs, s3fs, rclone ...): others count as network mounts.
LOCAL_FUSE = frozenset({"fuse.fuse-overlayfs", "fuse.lxcfs", "fuse.bindfs", "fuse.gocryptfs", "fuse.encfs"})


def network_mount(path: str | Path, mounts: Iterable[Mount] | None = None) -> str | None:
    """Return the type of the path's network file system, or None.

    For example "nfs4". The path need not exist yet. `mounts` are in mount order; None: those of
    this machine.
    """
    kind = _kind_of(Path(path).expanduser().absolute(), _system_mounts() if mounts is None else mounts)
    if kind in NETWORK or (kind.startswith(("fuse.", "osxfuse", "macfuse")) and kind not in LOCAL_FUSE):
        return kind
    return None


def _kind_of(path: Path, mounts: Iterable[Mount]) -> str:
    place = _resolved(path)
    best, kind = -1, ""
    for point, found in mounts:
        # The longest mount point wins; of two on the same point, the later mount hides the other.
        if len(point) >= best and place.is_relative_to(point):
            best, kind = len(point), found.lower()
    return kind


def _resolved(path: Path) -> Path:
    """Resolve links: one in the home folder may lead to the parallel file system."""
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
    """Decode a mount point: blanks, tabs, line ends and backslashes are octal."""
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text)
