"""DataFolder: one server a folder, remembered ports, and derived files that belong to one log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oncue.config import Settings
from oncue.dispatcher.folder import DataFolder
from oncue.errors import LogLocked

DERIVED = ("view.db", "view.db-wal", "windows.db", "marks.json")
KEPT = ("bridge.key", "http.port")


def folder_at(path: Path) -> DataFolder:
    return DataFolder(Settings(data=str(path)))


def fill(path: Path) -> None:
    for name in (*DERIVED, *KEPT):
        (path / name).write_text("1")


def names_in(path: Path) -> set[str]:
    return {p.name for p in path.iterdir()} & {*DERIVED, *KEPT}


def test_two_servers_cannot_have_one_folder(tmp_path: Path) -> None:
    first, second = folder_at(tmp_path), folder_at(tmp_path)
    first.lock()
    with pytest.raises(LogLocked):
        second.lock()
    first.release()
    second.lock()
    second.release()


def test_ports_and_keys_are_the_same_after_a_restart(tmp_path: Path) -> None:
    before = folder_at(tmp_path)
    assert (before.last_http_port(), before.last_bridge_port()) == (0, 0)
    before.set_http_port(8765)
    before.set_bridge_port(7001)
    keys = before.bridge_keys()
    after = folder_at(tmp_path)
    assert (after.last_http_port(), after.last_bridge_port(), after.bridge_keys()) == (8765, 7001, keys)


def test_an_empty_port_file_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "http.port").write_text("")
    assert folder_at(tmp_path).last_http_port() == 0


def test_files_derived_from_another_log_are_set_aside(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    folder.set_aside_of_other_log("kafka-1")
    fill(tmp_path)
    folder.set_aside_of_other_log("kafka-1")
    assert names_in(tmp_path) == {*DERIVED, *KEPT}
    folder.set_aside_of_other_log("kafka-2")
    assert names_in(tmp_path) == {*KEPT}
    note = json.loads((tmp_path / "diverged.json").read_text())
    assert {p.name for p in Path(note["kept"]).iterdir()} == {*DERIVED}
    assert "kafka-2" in note["reason"]


@pytest.mark.parametrize(
    ("identity", "kept"), [("sqlite", {*DERIVED, *KEPT}), ("sqlite 1a2b", {*DERIVED, *KEPT}), ("kafka-1", {*KEPT})]
)
def test_a_folder_from_before_the_note_has_an_embedded_log(tmp_path: Path, identity: str, kept: set[str]) -> None:
    fill(tmp_path)
    folder_at(tmp_path).set_aside_of_other_log(identity)
    assert names_in(tmp_path) == kept


def test_files_of_another_embedded_log_are_set_aside(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    folder.set_aside_of_other_log("sqlite 1a2b")
    fill(tmp_path)
    folder.set_aside_of_other_log("sqlite 3c4d")
    assert names_in(tmp_path) == {*KEPT}


def test_files_set_aside_twice_in_a_second_do_not_replace_each_other(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    kept = []
    for _ in range(3):
        fill(tmp_path)
        kept.append(folder.set_aside("the log is older"))
    assert len(set(kept)) == 3
    assert folder.set_aside("nothing is left") is None
