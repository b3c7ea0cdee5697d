"""OutputFile: content that is checked, and names that an endpoint chose."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from oncue.client.files import OutputFile, save_all
from oncue.errors import BlobMissing, Invalid, NotFound
from oncue.protocol.run_options import TaskFile

CONTENT = b"some content"
SHA = hashlib.sha256(CONTENT).hexdigest()


def output_file(name: str, content: bytes = CONTENT, stream: str = "") -> OutputFile:
    def parts(path: str) -> Iterator[bytes]:
        assert path == f"/v1/blobs/{SHA}"
        yield content[:5]
        yield content[5:]

    return OutputFile(TaskFile(name, SHA, len(CONTENT), stream), parts)


def test_files_are_saved_below_a_folder(tmp_path: Path) -> None:
    files = [output_file("a b/$(x).h5"), output_file("stdout"), output_file("stdout", stream="stdout")]
    saved = save_all(files, tmp_path)
    assert [p.relative_to(tmp_path).as_posix() for p in saved] == ["a b/$(x).h5", "stdout", "stdout.stream"]
    assert all(p.read_bytes() == CONTENT for p in saved)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", ".", "a\0b", "..\\x"])
def test_a_name_that_leads_out_of_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(Invalid):
        save_all([output_file("good"), output_file(name)], tmp_path / "to")
    assert not list(tmp_path.iterdir())


def test_a_link_that_leads_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "link").symlink_to(tmp_path)
    with pytest.raises(Invalid):
        save_all([output_file("link/x")], tmp_path / "to")
    assert not (tmp_path / "x").exists()


def test_other_bytes_than_the_tasks_are_an_error_and_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(BlobMissing, match="other bytes"):
        output_file("a", b"other content").save(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_gone_says_so(tmp_path: Path) -> None:
    def gone(_: str) -> Iterator[bytes]:
        raise NotFound("no blob")
        yield b""

    with pytest.raises(BlobMissing, match="a is not there any more"):
        OutputFile(TaskFile("a", SHA, 1), gone).read()
