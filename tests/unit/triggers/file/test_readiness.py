import os
import sys
from pathlib import Path

import msgspec
import pytest

from oncue.triggers.file.event import EventMaker
from oncue.triggers.file.options import FileOptions, FileSpec, read_options
from oncue.triggers.file.readiness import BUSY, FALLBACK_S, READY, SKIPPED, STABILIZING, check_readiness
from oncue.triggers.file.stability import Fingerprint, StabilityQueue, WaitingFile, fingerprint, open_for_writing
from oncue.triggers.file.watch.base import CHANGED, CLOSED, FOUND, RENAMED
from oncue.triggers.file.watch.open import network_mount


def spec(**options: object) -> FileSpec:
    return read_options("detector", msgspec.convert({"path": "/data", **options}, FileOptions))


ANY: dict[str, object] = {}
BOTH = {"close_write": True, "rename": True}
CLOSE, RENAME = {"close_write": True}, {"rename": True}
STABLE = {"stable": "3s"}
ANY_STABLE = {"any": ["close_write", "rename"], "stable": "3s"}

TABLE = [
    # ready, noticed, somebody writes, verdict, seconds
    (None, CLOSED, None, READY, 0),
    (None, RENAMED, True, READY, 0),
    (None, FOUND, False, READY, 0),
    (None, FOUND, True, BUSY, 0),
    (None, FOUND, None, STABILIZING, FALLBACK_S),
    (None, FOUND | CLOSED, True, READY, 0),
    (None, CHANGED, None, STABILIZING, FALLBACK_S),
    (CLOSE, CLOSED, None, READY, 0),
    (CLOSE, RENAMED, False, SKIPPED, 0),
    (CLOSE, RENAMED, True, BUSY, 0),
    (CLOSE, RENAMED | CLOSED, None, READY, 0),
    (RENAME, CLOSED, None, SKIPPED, 0),
    (RENAME, RENAMED, None, READY, 0),
    (BOTH, CLOSED, None, SKIPPED, 0),
    (BOTH, RENAMED, False, READY, 0),
    (BOTH, RENAMED, True, BUSY, 0),
    (BOTH, RENAMED, None, STABILIZING, FALLBACK_S),
    (BOTH, RENAMED | CLOSED, None, READY, 0),
    (STABLE, CLOSED, None, STABILIZING, 3),
    (STABLE, FOUND, True, STABILIZING, 3),
    (ANY_STABLE, CLOSED, None, STABILIZING, 3),
    (ANY_STABLE, FOUND, False, STABILIZING, 3),
    (ANY_STABLE, FOUND, None, STABILIZING, 3),
    (ANY_STABLE, FOUND, True, BUSY, 0),
]


@pytest.mark.parametrize(("ready", "bits", "writing", "verdict", "seconds"), TABLE)
def test_judge(ready: object, bits: int, writing: bool | None, verdict: str, seconds: float) -> None:
    options = {} if ready is None else {"ready": ready}
    found = check_readiness(spec(**options), bits, lambda: writing)
    assert found[:2] == (verdict, seconds)
    assert bool(found[2]) is (verdict != READY)


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
def test_options_that_are_wrong_name_the_key(options: dict[str, object], word: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=word):  # a deploy
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
def test_selection(glob: str, ignore: tuple[str, ...] | None, path: str, expected: bool) -> None:
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


# ---------------------------------------------------------------- settling, events


def test_settling_gives_what_is_due_in_order() -> None:
    settling = StabilityQueue()
    for i, due in enumerate((3.0, 1.0, 2.0)):
        settling.push(("", f"{i}"), WaitingFile(CLOSED, 0, Fingerprint(1, 1, 1), due, True))
    settling.push(("", "1"), WaitingFile(CLOSED, 0, Fingerprint(1, 1, 2), 2.5, True))  # later than first told
    assert settling.next_due() == 2.0
    assert [key[1] for key, _ in settling.pop_due(2.6, 10)] == ["2", "1"]
    assert ("", "0") in settling
    assert len(settling) == 1
    assert settling.pop_due(2.6, 10) == []
    assert settling.pop(("", "0")) is not None
    assert settling.next_due() is None


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for a lease")
def test_open_for_writing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("wb"):
        assert open_for_writing(str(path)) is True
        with path.open("rb"):
            assert open_for_writing(str(path)) is True
    with path.open("rb"):
        assert open_for_writing(str(path)) is False
    assert open_for_writing(str(tmp_path)) is None
    assert open_for_writing(str(tmp_path / "none")) is None


def test_the_id_follows_from_trigger_path_and_state(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(b"1")
    options = {"path": str(tmp_path)}

    def made(name: str = "detector", size: int = 1) -> str:
        st = path.stat()
        seen = fingerprint(st)._replace(size=size)
        return EventMaker(name, spec(**options)).make(("", "a.h5"), st, seen, "rescan", 1, 2).id

    assert made() == made()
    os.chmod(path, 0o600)  # another ctime: the same file
    assert made() == made()
    assert len({made(), made("other"), made(size=2)}) == 3


def test_the_network_mount_of_a_local_folder_is_none(tmp_path: Path) -> None:
    assert network_mount(tmp_path) == ""
    assert network_mount(Path("/proc")) == ""
