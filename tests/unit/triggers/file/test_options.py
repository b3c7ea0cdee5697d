"""FileOptions and FileSpec: checks and globs of kind file."""

from __future__ import annotations

import msgspec
import pytest

from oncue.triggers.file.options import FileOptions, FileSpec, read_options


def spec(**options: object) -> FileSpec:
    return read_options("detector", msgspec.convert({"path": "/data", **options}, FileOptions))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"path": ""}, "path"),
        ({"ready": {}}, "no condition"),
        ({"ready": {"stable": "soon"}}, "ready.stable"),
        ({"ready": {"stable": -1}}, "ready.stable"),
        ({"glob": "[a"}, "glob"),
        ({"ignore": ["{a"]}, "glob"),
        ({"rescan": 0}, "rescan"),
    ],
)
def test_errors_of_options_name_the_key(options: dict[str, object], word: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=word):  # as in a deploy
        spec(**options)


@pytest.mark.parametrize("options", [{"ready": {"any": ["close"]}}, {"refire": "often"}, {"paht": "/x"}])
def test_unknown_words_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        spec(**options)


@pytest.mark.parametrize(
    ("glob", "ignore", "path", "expected"),
    [
        ("**/*", None, "a/b.h5", True),
        ("**/*", None, "a/.b.h5", False),
        ("**/*", None, "a/b.h5~", False),
        ("**/*", None, "b.tmp", False),
        ("**/*", None, "btmp", True),
        ("**/*", (), ".b", True),
        ("**/*.h5", None, "a/b.h5", True),
        ("**/*.h5", None, "a/b.h5x", False),
        ("**/*.h5", ("bad_*",), "a/bad_1.h5", False),
        ("**/*.h5", ("bad_*", "bad"), "a/bad", False),
        ("**/*", ("*.tmp", "x.tmp", "ab", "a*c"), "abc", False),
        ("**/*", ("a*", "ab"), "ab", False),
        ("**/*", ("a?",), "ab", False),
        ("*.{h5,tif}", None, "b.tif", True),
        ("*.{h5,tif}", None, "a/b.tif", False),
        ("**/*", ("raw/**",), "raw/a/b", False),
    ],
)
def test_globs_select_files(glob: str, ignore: tuple[str, ...] | None, path: str, expected: bool) -> None:
    options = {"glob": glob} if ignore is None else {"glob": glob, "ignore": ignore}
    folder, _, name = path.rpartition("/")
    assert spec(**options).matches(folder, name) is expected


def test_which_folders_may_hold_files() -> None:
    assert spec(glob="**/*.h5").enter("a/b/c")
    assert not spec(glob="**/*.h5").enter("a/.git")
    assert not spec(glob="**/*.h5").enter(".git/b")
    assert spec(glob="*/x.h5").enter("a")
    assert not spec(glob="*/x.h5").enter("a/b")
    assert not spec(ignore=("raw/old",)).enter("raw/old/b")
