from __future__ import annotations

from pathlib import Path

import pytest

from oncue.log.sqlite.mounts import _unescape, network_mount

TABLE = [
    ("/", "ext4"),
    ("/home", "nfs4"),
    ("/home/me/local", "xfs"),
    ("/lus/eagle", "lustre"),
    ("/gpfs", "gpfs"),
    ("/mnt/share", "CIFS"),
    ("/mnt/ssh", "fuse.sshfs"),
    ("/mnt/box", "fuse.fuse-overlayfs"),
    ("/over", "nfs"),
    ("/over", "tmpfs"),  # mounted on top of it
]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/oncue", None),
        ("/home/me/.oncue", "nfs4"),
        ("/home", "nfs4"),
        ("/homestead/x", None),
        ("/home/me/local/data", None),
        ("/lus/eagle/project/x/y", "lustre"),
        ("/gpfs/x", "gpfs"),
        ("/mnt/share/x", "cifs"),
        ("/mnt/ssh/deep/er", "fuse.sshfs"),
        ("/mnt/box/x", None),
        ("/over/x", None),
    ],
)
def test_the_mount_that_holds_a_path_decides(path: str, kind: str | None) -> None:
    assert network_mount(path, TABLE) == kind


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to(tmp_path / "far")
    table = [("/", "ext4"), (str((tmp_path / "far").resolve()), "lustre")]
    assert network_mount(tmp_path / "near" / "not" / "there yet", table) == "lustre"
    assert network_mount(tmp_path / "other", table) is None


def test_the_real_table_is_read(tmp_path: Path) -> None:
    assert network_mount("/proc/self") is None
    found = network_mount(tmp_path)
    assert found is None or found


def test_blanks_in_mount_points() -> None:
    assert _unescape("/mnt/my\\040disk\\134x") == "/mnt/my disk\\x"
