"""FileOptions and FileSpec: checks and globs of kind file."""

from __future__ import annotations

from itertools import accumulate

import msgspec
import pytest

from oncue.triggers.file.options import FileOptions, FileSpec, read_options
from oncue.triggers.file.selection import Selection, read_selection


def spec(**options: object) -> FileSpec:
    return read_options("detector", msgspec.convert({"path": "/data", **options}, FileOptions))


def selects(found: FileSpec, path: str) -> bool:
    folder, _, name = path.rpartition("/")
    above = accumulate(folder.split("/"), lambda a, b: f"{a}/{b}") if folder else ()
    return all(map(found.enter, above)) and found.matches(folder, name)


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


TEMPORARY = (
    "A.TMP",
    "b.Tmp",
    "big.h5.filepart",
    "BIG.H5.PART",
    "x.crdownload",
    "x.opdownload",
    "x.Download",
    ".scan.h5.Xy12ab",
    "x.partial",
    "x._COPYING_",
    "x_.gstmp",
    "~$book.xlsx",
    "#scan.py#",
    "scan.py~",
    ".scan.py.swp",
    "x.incomplete",
    ".rsync-partial/a.h5",
    "a.TMP/b.h5",
)


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
        *[("**/*", None, name, False) for name in TEMPORARY],
        *[("**/*", None, name, True) for name in ("tmp", "part.h5", "scan_4913", "A.TMPX", "download")],
        ("**/*", ("*.tmp",), "A.TMP", True),
        ("**/*.h5", None, "SCAN.H5", False),
        ("**/e\u0301*.h5", None, "a/\u00e91.h5", True),
        ("**/\u00e9*.h5", None, "a/e\u03011.h5", True),
        ("caf\u00e9/*", ("caf\u00e9/no*",), "cafe\u0301/no1", False),
    ],
)
def test_globs_select_files(glob: str, ignore: tuple[str, ...] | None, path: str, expected: bool) -> None:
    options = {"glob": glob} if ignore is None else {"glob": glob, "ignore": ignore}
    assert selects(spec(**options), path) is expected


def test_which_folders_may_hold_files() -> None:
    assert spec(glob="**/*.h5").enter("a/b/c")
    assert not spec(glob="**/*.h5").enter("a/.git")
    assert not spec(glob="**/*.h5").enter(".git/b")
    assert spec(glob="*/x.h5").enter("a")
    assert not spec(glob="*/x.h5").enter("a/b")
    assert not spec(ignore=("raw/old",)).enter("raw/old/b")


@pytest.mark.parametrize(
    ("glob", "ignore", "path", "expected"),
    [
        ("**/*.h5", (), "a/SCAN.H5", True),
        ("Raw/*.{H5,tif}", (), "raw/x.h5", True),
        ("**/*.h5", ("Bad_*", "old/**"), "BAD_1.h5", False),
        ("**/*.h5", ("Bad_*", "old/**"), "OLD/1.h5", False),
        ("**/\u00c9*", (), "e\u0301t\u00e9", True),
    ],
)
def test_case_insensitive_globs(glob: str, ignore: tuple[str, ...], path: str, expected: bool) -> None:
    assert selects(spec(glob=glob, ignore=ignore, case="insensitive"), path) is expected


@pytest.mark.parametrize(
    ("selection", "name", "words"),
    [
        (Selection("**/*.h5", ()), "SCAN.H5", "`case: insensitive` would"),
        (Selection("**/*.h5", ("*.tmp",)), "a.tmp", "ignore: *.tmp"),
        (Selection("\u00e9*", (), any_form=False), "e\u03011", "'\\xe9*' and 'e\\u03011'"),
        (Selection("*.h5", ()), "a.tif", "does not select it"),
        (Selection("*.h5", ()), "a.h5", ""),
    ],
)
def test_why_a_file_is_not_selected(selection: Selection, name: str, words: str) -> None:
    why = selection.excludes("", name)
    assert words in why
    assert bool(why) is bool(words)


@pytest.mark.parametrize("glob", ["**/*.h5", "**/\u00e9*"])
def test_the_text_of_a_selection_is_read_as_it_was_written(glob: str) -> None:
    found = read_selection(spec(glob=glob, ignore=()).selects)
    assert found.any_form is not glob.isascii()
    old = read_selection(f'["{glob}",["*.tmp"]]'.encode())  # of an older version
    assert old == Selection(glob, ("*.tmp",))


def test_the_globs_to_ignore_are_bounded_together() -> None:
    assert FileOptions(path="/data", ignore=tuple(f"raw_{n}_*" for n in range(1_000))).ignore
    with pytest.raises(ValueError, match="ignore: the globs have over 16,384 characters together"):
        FileOptions(path="/data", ignore=tuple(f"raw_{n}_*" for n in range(2_000)))


def test_a_selection_is_compiled_once() -> None:
    selections = [Selection("**/*.h5", ("a*",)) for _ in range(2)]
    assert selections[0].compile() is selections[1].compile()
