"""Which files a deploy takes, and the labels that they get."""

from __future__ import annotations

from pathlib import Path

import pytest

from oncue.cli.deploying.paths import labelled_files
from oncue.errors import Invalid


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in {
        "rules/b.yaml": "rules: []\n",
        "rules/a.yml": "# first\ntriggers:\n",
        "rules/sub/b.yaml": "{rules: []}",
        "rules/prod.yaml": "threshold: 5\n",
        "rules/.hidden.yaml": "rules: []\n",
        "rules/.git/c.yaml": "rules: []\n",
        "rules/notes.txt": "rules: []\n",
        "empty/prod.yaml": "x: 1\n",
        "one.yaml": "rules: []\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_is_its_rule_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = labelled_files(["rules"], "")
    assert [tuple(f) for f in found] == [
        ("rules/a.yml", "a"),
        ("rules/b.yaml", "b"),
        ("rules/sub/b.yaml", "sub/b"),
    ]
    assert "rules/prod.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("text", [b"\xef\xbb\xbfrules: []\n", b"--- {rules: []}\n", b'# rules\n{"triggers": []}\n'])
def test_rule_files_are_known_however_they_begin(folder: Path, text: bytes) -> None:
    """Else --prune would remove what one of them has deployed."""
    Path("rules/a.yml").write_bytes(text)
    assert ("rules/a.yml", "a") in [tuple(f) for f in labelled_files(["rules"], "")]


@pytest.mark.parametrize(
    ("given", "label", "expected"),
    [
        (["one.yaml"], "", ["one"]),
        (["one.yaml"], "bl", ["bl"]),
        (["one.yaml", "rules/b.yaml"], "bl", ["bl/one", "bl/b"]),
        (["rules"], "bl", ["bl/a", "bl/b", "bl/sub/b"]),
        (["rules/sub"], "bl", ["bl/b"]),
        (["rules", "rules/b.yaml"], "", ["a", "b", "sub/b"]),
        (["missing.yaml"], "", ["missing"]),
    ],
)
def test_labels(folder: Path, given: list[str], label: str, expected: list[str]) -> None:
    assert [f.label for f in labelled_files(given, label)] == expected


def test_two_files_of_one_label_are_named(folder: Path) -> None:
    with pytest.raises(Invalid, match=r"rules/b\.yaml and rules/sub/b\.yaml would both be the deployment 'b'"):
        labelled_files(["rules/b.yaml", "rules/sub/b.yaml"], "")


def test_a_folder_without_rule_files_is_refused(folder: Path) -> None:
    """Else --prune would remove all that its label owns."""
    with pytest.raises(Invalid, match="no rule files below empty"):
        labelled_files(["empty"], "bl")
