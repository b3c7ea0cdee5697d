"""network_mount: the filesystem that holds a folder."""

from __future__ import annotations

from pathlib import Path

from oncue.triggers.file.watch.open import network_mount


def test_the_network_mount_of_a_local_folder_is_none(tmp_path: Path) -> None:
    assert network_mount(tmp_path) == ""
    assert network_mount(Path("/proc")) == ""
