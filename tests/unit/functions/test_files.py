"""Packing functions named by a file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from oncue.errors import CannotPack
from oncue.functions import describe, pack_file
from tests.unit.functions.other_process import (
    HELPERS,
    SOURCE,
    call_elsewhere,
    write_files,
)


def test_function_of_a_file(tmp_path: Path) -> None:
    before, path = set(sys.modules), list(sys.path)
    write_files(tmp_path, {"tomo.py": SOURCE, "helpers.py": HELPERS})
    packed = pack_file(tmp_path / "tomo.py", "uses_siblings")
    assert call_elsewhere(packed.body, tmp_path, 2) == "18"
    assert set(describe(packed.body).siblings) == {"tomo.py", "helpers.py"}
    assert not {"tomo", "helpers"} & (set(sys.modules) - before)
    assert sys.path == path
    assert packed.id == pack_file(tmp_path / "tomo.py", "uses_siblings").id


def test_same_file_name_in_two_folders(tmp_path: Path) -> None:
    for k in ("a", "b"):
        write_files(
            tmp_path / k,
            {"job.py": "import settings\ndef f():\n    import settings as s\n    return settings.X + s.X\n"},
        )
        write_files(tmp_path / k, {"settings.py": f"X = {k!r}\n"})
    a, b = (pack_file(tmp_path / k / "job.py", "f") for k in "ab")
    assert a.id != b.id
    assert call_elsewhere(a.body, tmp_path) == "'aa'"
    assert call_elsewhere(b.body, tmp_path) == "'bb'"


def test_edited_file_is_read_again(tmp_path: Path) -> None:
    write_files(tmp_path, {"job.py": "def f(): return 1\n"})
    first = pack_file(tmp_path / "job.py", "f")
    write_files(tmp_path, {"job.py": "def f(): return 2\n"})
    second = pack_file(tmp_path / "job.py", "f")
    assert first.id != second.id
    assert call_elsewhere(second.body, tmp_path) == "2"


def test_packages_with_relative_imports(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {
            "pkg/__init__.py": "BASE = 1\n",
            "pkg/sub/__init__.py": "",
            "pkg/sub/run.py": "from .. import BASE\nfrom . import part\nfrom ..other import more\n"
            "def f(x): return x + BASE + part.P + more()\n",
            "pkg/sub/part.py": "P = 10\n",
            "pkg/other.py": "def more(): return 100\n",
            "pkg/unused.py": "1/0\n",
        },
    )
    packed = pack_file(tmp_path / "pkg/sub/run.py", "f")
    assert "pkg/unused.py" not in describe(packed.body).siblings
    assert call_elsewhere(packed.body, tmp_path, 1) == "112"


def test_module_level_lock_of_a_file(tmp_path: Path) -> None:
    write_files(tmp_path, {"job.py": "import threading\nLOCK = threading.Lock()\ndef f():\n    with LOCK: return 5\n"})
    assert call_elsewhere(pack_file(tmp_path / "job.py", "f").body, tmp_path) == "5"


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("def reconstruct(): pass\n", "reconstrct", "did you mean 'reconstruct'"),
        ("def f(:\n", "f", "line 1"),
        ("x = 1\n1/0\n", "f", "line 2: ZeroDivisionError"),
        ("import nowhere_at_all\n", "f", "nowhere_at_all"),
        ("x = 1\n", "x", "not something that can be called"),
    ],
)
def test_invalid_file(text: str, name: str, words: str, tmp_path: Path) -> None:
    write_files(tmp_path, {"job.py": text})
    with pytest.raises(CannotPack) as e:
        pack_file(tmp_path / "job.py", name)
    assert words in str(e.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CannotPack, match="there is no file"):
        pack_file(tmp_path / "no.py", "f")
