"""FileTrigger on real files, with the kernel's own notices."""

import asyncio
import contextlib
import errno
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from watched import Watched

from oncue.errors import Invalid, LogError, TooLarge
from oncue.triggers.base import Decision

linux = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux who writes, or its kernel for its limits")


def play(tmp: Path, part: Callable[[Watched], Awaitable[None]], **options: object) -> Watched:
    """Run `part` with a trigger whose initial scan has ended."""
    watched = Watched(tmp, **options)

    async def main() -> None:
        async with watched.running():
            await part(watched)

    asyncio.run(main())
    return watched


SLOW_WRITER = """
import sys, time
with open(sys.argv[1], "w") as f:
    for i in range(4):
        f.write("x" * 1000); f.flush(); time.sleep(0.15)
    print("wrote", flush=True)
    sys.stdin.readline()
"""


def slow_writer(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SLOW_WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def end(writer: subprocess.Popen[str]) -> None:
    writer.communicate("\n", timeout=30)


# ---------------------------------------------------------------- files that fire


def test_a_closed_file_fires_once_with_its_metadata(tmp_path: Path) -> None:
    async def part(w: Watched) -> None:
        (w.data / "sub").mkdir()
        path = w.data / "sub" / "scan 1.h5"
        path.write_bytes(b"12345")
        (event,) = await w.count(1)
        st = path.stat()
        data = dict(event.data)
        assert data.pop("host")
        assert data == {
            "path": str(path),
            "name": "scan 1.h5",
            "stem": "scan 1",
            "folder": str(path.parent),
            "relative": "sub/scan 1.h5",
            "size": 5,
            "mtime": st.st_mtime_ns / 1e9,
            "trigger": "detector",
            "cause": data["cause"],
        }
        assert data["cause"] in ("close_write", "rescan")  # of a new folder
        assert (event.type, event.subject) == ("oncue.file.ready", "sub/scan 1.h5")
        assert event.source == f"file://{w.data}"
        assert event.extensions["oncuetrigger"] == "detector"
        assert abs(int(str(event.extensions["oncuetimems"])) - st.st_ctime_ns // 1_000_000) <= 1
        assert abs(int(str(event.extensions["oncuemarkus"])) - time.time_ns() // 1_000) < 60_000_000
        await w.quiet()
        assert len(w.events) == 1

    w = play(tmp_path, part)
    assert w.trigger.status().emitted == 2


def test_a_slow_writer_fires_when_it_closes(tmp_path: Path) -> None:
    async def part(w: Watched) -> None:
        writer = slow_writer(w.data / "slow.h5")
        assert await asyncio.to_thread(writer.stdout.readline) == "wrote\n"  # type: ignore[union-attr]
        await w.quiet()
        assert w.names == []
        await asyncio.to_thread(end, writer)
        (event,) = await w.count(1)
        assert event.data["size"] == 4000
        assert event.data["cause"] == "close_write"

    play(tmp_path, part)


@linux
def test_a_scan_does_not_fire_a_half_written_file(tmp_path: Path) -> None:
    """The writer runs when oncue starts, and pauses for a long time."""
    w = Watched(tmp_path)

    async def main() -> None:
        async with w.running():
            await w.quiet()
        writer = slow_writer(w.data / "slow.h5")
        assert writer.stdout is not None
        writer.stdout.readline()
        async with w.running():
            assert "open for writing" in await w.decided("slow.h5")
            await w.quiet()
            assert w.names == []
            await asyncio.to_thread(end, writer)
            (event,) = await w.count(1)
            assert event.data["size"] == 4000

    asyncio.run(main())


def test_rename_into_place_fires_for_the_final_name_only(tmp_path: Path) -> None:
    async def part(w: Watched) -> None:
        temporary = w.data / "scan.h5.tmp"
        temporary.write_bytes(b"1")
        temporary.rename(w.data / "scan.h5")
        outside = tmp_path / "outside.h5"
        outside.write_bytes(b"22")
        os.utime(outside, (1, 1))  # its old time must not matter
        outside.rename(w.data / "in.h5")
        await w.count(2)
        await w.quiet()
        assert [(e.data["name"], e.data["cause"]) for e in w.events] == [("scan.h5", "rename"), ("in.h5", "rename")]

    play(tmp_path, part)


def test_links_to_complete_files_fire(tmp_path: Path) -> None:
    async def part(w: Watched) -> None:
        outside = tmp_path / "outside.h5"
        outside.write_bytes(b"22")
        os.link(outside, w.data / "hard.h5")
        await w.count(1)
        os.symlink(outside, w.data / "soft.h5")
        assert "symbolic link" in await w.decided("soft.h5")
        await w.quiet()
        assert w.names == ["hard.h5"]
        assert "soft.h5" in w.trigger.status().last_skip

    play(tmp_path, part)


def test_symlinks_fire_when_the_options_say_so(tmp_path: Path) -> None:
    async def part(w: Watched) -> None:
        outside = tmp_path / "outside.h5"
        outside.write_bytes(b"22")
        (tmp_path / "folder").mkdir()
        os.symlink(outside, w.data / "soft.h5")
        os.symlink(tmp_path / "folder", w.data / "folder")
        (event,) = await w.count(1)
        assert event.data["size"] == 2
        (tmp_path / "folder" / "x.h5").write_bytes(b"")
        await w.quiet()
        assert w.names == ["soft.h5"]

    play(tmp_path, part, symlinks="files")


def test_only_selected_files_fire(tmp_path: Path) -> None:
    async def part(w: Watched) -> None:
        for name in ("a.h5", "b.tif", ".hidden.h5", "c.h5~", "deep/d.h5", "deep/raw/e.h5", ".git/f.h5"):
            path = w.data / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"1")
        (w.data / "last.h5").write_bytes(b"")
        await w.until(lambda: "last.h5" in w.names and "deep/d.h5" in w.names)
        assert sorted(w.names) == ["a.h5", "deep/d.h5", "last.h5"]

    play(tmp_path, part, glob="**/*.h5", ignore=(".*", "*~", "deep/raw/**", "deep/raw"))


def test_a_glob_without_depth_watches_one_folder(tmp_path: Path) -> None:
    async def part(w: Watched) -> None:
        (w.data / "deep").mkdir()
        (w.data / "deep" / "a.h5").write_bytes(b"1")
        (w.data / "b.h5").write_bytes(b"1")
        await w.count(1)
        assert w.names == ["b.h5"]

    play(tmp_path, part, glob="*.h5")


def test_files_of_a_tree_moved_in_and_of_one_made_inside_fire(tmp_path: Path) -> None:
    async def part(w: Watched) -> None:
        tree = tmp_path / "run_7"
        (tree / "a" / "b").mkdir(parents=True)
        for i in range(20):
            (tree / "a" / "b" / f"{i}.h5").write_bytes(b"1")
        tree.rename(w.data / "run_7")
        await w.count(20)
        (w.data / "run_7" / "a" / "b" / "later.h5").write_bytes(b"1")
        await w.count(21)
        (w.data / "run_7").rename(w.data / "run_8")  # new names: they fire again, and are still watched
        await w.count(42)
        (w.data / "run_8" / "a" / "b" / "latest.h5").write_bytes(b"1")
        await w.count(43)
        deep = w.data / "x" / "y" / "z"
        deep.mkdir(parents=True)
        (deep / "1.h5").write_bytes(b"1")
        await w.count(44)
        (w.data / "x").rename(tmp_path / "x")
        (tmp_path / "x" / "y" / "z" / "out.h5").write_bytes(b"1")
        await w.quiet()
        assert len(w.events) == 44

    play(tmp_path, part)


# ---------------------------------------------------------------- again, or not


def test_a_changed_file_fires_again(tmp_path: Path) -> None:
    async def part(w: Watched) -> None:
        path = w.data / "a.h5"
        path.write_bytes(b"1")
        await w.count(1)
        with path.open("r+b"):
            pass  # opened for writing, nothing written
        assert "unchanged" in await w.decided("a.h5") or await w.quiet() is None
        await w.quiet()
        assert len(w.events) == 1
        path.write_bytes(b"22")
        await w.count(2)
        path.unlink()
        path.write_bytes(b"22")
        await w.count(3)
        assert len({e.id for e in w.events}) == 3

    play(tmp_path, part)


def test_refire_never_fires_a_file_once(tmp_path: Path) -> None:
    async def part(w: Watched) -> None:
        path = w.data / "a.h5"
        path.write_bytes(b"1")
        await w.count(1)
        await w.quiet()
        path.write_bytes(b"22")
        await w.quiet()
        assert len(w.events) == 1
        assert "refire: never" in await w.decided("a.h5")

    w = play(tmp_path, part, refire="never")
    assert w.trigger.status().skipped == 1


def test_stable_waits_until_the_file_is_unchanged(tmp_path: Path) -> None:
    async def part(w: Watched) -> None:
        path = w.data / "a.h5"
        for i in range(4):  # closed again and again, with pauses shorter than asked for
            with path.open("ab") as f:
                f.write(b"x" * 10)
            await asyncio.sleep(0.1)
            assert w.events == [], i
        closed = time.monotonic()
        (event,) = await w.count(1)
        assert time.monotonic() - closed > 0.2
        assert (event.data["size"], event.data["cause"]) == (40, "stable")
        gone = w.data / "gone.h5"
        gone.write_bytes(b"1")
        await w.until(lambda: "unchanged" in "".join(d.why for d in w.trigger.decisions() if d.item == "gone.h5"))
        gone.unlink()
        await w.until(lambda: "gone before" in w.trigger.status().last_skip)
        assert len(w.events) == 1

    play(tmp_path, part, ready={"any": ["close_write", "rename"], "stable": "400ms"})


def test_stable_alone_fires_a_file_that_is_never_closed(tmp_path: Path) -> None:
    async def part(w: Watched) -> None:
        with (w.data / "a.h5").open("wb") as f:
            f.write(b"1")
            f.flush()
            (event,) = await w.count(1)
            assert event.data["cause"] == "stable"

    play(tmp_path, part, ready={"stable": 0.3})


@pytest.mark.parametrize(
    ("ready", "closed", "renamed"),
    [
        ({"close_write": True}, True, False),
        ({"rename": True}, False, True),
        ({"close_write": True, "rename": True}, False, True),
    ],
)
@linux
def test_ready_selects_closed_or_renamed_files(
    tmp_path: Path, ready: dict[str, bool], closed: bool, renamed: bool
) -> None:
    async def part(w: Watched) -> None:
        (w.data / "closed.h5").write_bytes(b"1")
        (w.data / "renamed.tmp").write_bytes(b"1")
        (w.data / "renamed.h5.tmp").write_bytes(b"1")
        (w.data / "renamed.h5.tmp").rename(w.data / "renamed.h5")
        await w.until(lambda: {d.item for d in w.trigger.decisions()} >= {"closed.h5", "renamed.h5"})
        await w.until(lambda: len(w.events) == 1)
        assert w.names == ["closed.h5"] * closed + ["renamed.h5"] * renamed
        assert "ready asks for" in w.trigger.status().last_skip

    play(tmp_path, part, ready=ready, glob="**/*.h5")


@linux
def test_renamed_while_it_is_written_waits_for_the_close(tmp_path: Path) -> None:
    async def part(w: Watched) -> None:
        with (w.data / "a.tmp").open("wb") as f:
            f.write(b"1")
            (w.data / "a.tmp").rename(w.data / "a.h5")
            assert "open for writing" in await w.decided("a.h5")
            f.write(b"2")
        (event,) = await w.count(1)
        assert event.data["size"] == 2

    play(tmp_path, part, ready={"close_write": True, "rename": True})


# ---------------------------------------------------------------- starts


def test_existing_files_do_not_fire_but_files_that_arrived_while_down_do(tmp_path: Path) -> None:
    w = Watched(tmp_path)
    (w.data / "before.h5").write_bytes(b"1")
    (w.data / "deep").mkdir()
    (w.data / "deep" / "before.h5").write_bytes(b"1")

    async def main() -> None:
        async with w.running():
            await w.quiet()
            assert w.names == []
        (w.data / "meanwhile.h5").write_bytes(b"1")
        old = tmp_path / "old.h5"
        old.write_bytes(b"1")
        os.utime(old, (1, 1))
        old.rename(w.data / "old.h5")
        async with w.running():
            await w.count(2)
            assert {e.data["cause"] for e in w.events} == {"rescan"}
        async with w.running():
            await w.quiet()
            assert len(w.events) == 2
            (w.data / "deep" / "before.h5").write_bytes(b"22")
            await w.count(3)

    asyncio.run(main())
    assert sorted(w.names) == ["deep/before.h5", "meanwhile.h5", "old.h5"]


def test_existing_true_fires_existing_files(tmp_path: Path) -> None:
    w = Watched(tmp_path, existing=True)
    for i in range(5):
        (w.data / f"{i}.h5").write_bytes(b"1")

    async def main() -> None:
        async with w.running():
            await w.count(5)
            await w.quiet()
        async with w.running():
            await w.quiet()
            assert len(w.events) == 5

    asyncio.run(main())


def test_a_wider_glob_does_not_fire_existing_files(tmp_path: Path) -> None:
    w = Watched(tmp_path, glob="**/*.h5")

    async def main() -> None:
        async with w.running():
            (w.data / "a.h5").write_bytes(b"1")
            (w.data / "a.tif").write_bytes(b"1")
            await w.count(1)
        (w.data / "b.h5").write_bytes(b"1")
        w.options["glob"] = "**/*.{h5,tif}"
        async with w.running():
            await w.count(2)
            (w.data / "b.tif").write_bytes(b"1")
            await w.count(3)

    asyncio.run(main())
    assert w.names == ["a.h5", "b.h5", "b.tif"]


def test_a_failed_emit_is_retried_with_the_same_ids(tmp_path: Path) -> None:
    async def part(w: Watched) -> None:
        w.fails = [LogError("the disk is full"), LogError("the disk is full")]
        (w.data / "a.h5").write_bytes(b"1")
        await w.count(1)
        await w.quiet()
        assert w.names == ["a.h5"]
        assert w.trigger.status().detail == ""

    play(tmp_path, part)


def test_a_rejected_event_affects_no_other(tmp_path: Path) -> None:
    w = Watched(tmp_path, existing=True)
    for i in range(4):
        (w.data / f"{i}.h5").write_bytes(b"1")
    w.fails = [Invalid("one is wrong"), TooLarge("one of the first half"), Invalid("this one")]

    async def main() -> None:
        async with w.running():
            await w.count(3)
            assert "refused" in w.trigger.status().last_skip
        w.events.clear()
        async with w.running():
            await w.quiet()
            assert w.names == []

    asyncio.run(main())


# ---------------------------------------------------------------- trouble with the folder


def test_a_missing_removed_and_recreated_folder(tmp_path: Path) -> None:
    w = Watched(tmp_path)
    w.data.rmdir()

    async def main() -> None:
        async with w.running(until="waiting"):
            assert str(w.data) in w.trigger.status().detail
            w.data.mkdir()
            (w.data / "first.h5").write_bytes(b"1")  # the folder was missing at the deploy: it fires
            await w.until(lambda: w.trigger.status().state == "running")
            await w.count(1)
            shutil.rmtree(w.data)
            await w.until(lambda: w.trigger.status().state == "waiting")
            w.data.mkdir()
            (w.data / "second.h5").write_bytes(b"1")
            await w.count(2)
            w.data.rename(tmp_path / "elsewhere")
            await w.until(lambda: w.trigger.status().state == "waiting")
            (tmp_path / "elsewhere").rename(w.data)
            await w.quiet()
            assert w.names == ["first.h5", "second.h5"]

    asyncio.run(main())


def test_a_file_instead_of_the_folder_is_an_error(tmp_path: Path) -> None:
    w = Watched(tmp_path)
    w.data.rmdir()
    w.data.write_bytes(b"")

    async def main() -> None:
        async with w.running(until="failed"):
            assert "not a folder" in w.trigger.status().detail

    asyncio.run(main())


@contextlib.contextmanager
def nobody(*owned: Path, uid: int = 65534) -> Iterator[None]:
    """Run as the user nobody, who owns these paths; root may read everything."""
    if os.geteuid() != 0:
        yield
        return
    # Somebody else may not read the libraries' folders.

    import concurrent.futures.thread  # noqa: F401

    import oncue.triggers.file.watch.inotify  # noqa: F401

    for path in owned:
        os.chown(path, uid, uid)
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@linux
def test_a_folder_that_may_not_be_read() -> None:
    async def part(w: Watched) -> None:
        (w.data / "secret").mkdir(mode=0)
        await w.until(lambda: "cannot be read" in w.trigger.status().last_skip)
        (w.data / "a.h5").write_bytes(b"1")
        await w.count(1)
        (w.data / "secret").chmod(0o700)
        (w.data / "secret" / "b.h5").write_bytes(b"1")  # found by a later scan
        await w.count(2)
        w.data.chmod(0)  # from here on nothing can be listed
        await w.until(lambda: w.trigger.status().state == "failed")
        assert "ermission" in w.trigger.status().detail
        w.data.chmod(0o700)
        await w.until(lambda: w.trigger.status().state == "running")
        await w.quiet()
        assert len(w.events) == 2

    with tempfile.TemporaryDirectory() as folder, nobody(Path(folder)):
        play(Path(folder), part, rescan="200ms")


@linux
def test_folders_beyond_the_kernels_limit_are_scanned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from oncue.triggers.file.watch.inotify import InotifyWatch

    real = InotifyWatch.add

    def add(self: InotifyWatch, folder: str) -> None:
        if folder:
            raise OSError(errno.ENOSPC, "no watches left")
        real(self, folder)

    monkeypatch.setattr(InotifyWatch, "add", add)

    async def part(w: Watched) -> None:
        (w.data / "deep").mkdir()
        await w.until(lambda: "max_user_watches" in w.trigger.status().detail)
        (w.data / "deep" / "a.h5").write_bytes(b"1")
        (event,) = await w.count(1)
        assert event.data["cause"] == "rescan"

    play(tmp_path, part, rescan="200ms")


def test_names_that_are_not_utf8_are_reported_and_other_files_fire(tmp_path: Path) -> None:
    async def part(w: Watched) -> None:
        try:
            fd = os.open(os.fsencode(w.data) + b"/bad\xff.h5", os.O_CREAT | os.O_WRONLY)
        except OSError:
            pytest.skip("this filesystem has no such names")
        os.close(fd)
        (w.data / "line\nbreak [red].h5").write_bytes(b"1")
        (w.data / "été 走.h5").write_bytes(b"1")
        await w.until(lambda: len(w.events) >= 2)
        await w.quiet()
        assert w.names == ["line\nbreak [red].h5", "été 走.h5"]
        assert w.events[0].subject == "line%0Abreak%20%5Bred%5D.h5"
        assert "UTF-8" in w.trigger.status().last_skip

    w = play(tmp_path, part)

    async def again() -> None:
        async with w.running():
            assert "UTF-8" in w.trigger.status().last_skip

    asyncio.run(again())


def test_a_second_process_on_the_same_ledger_is_refused(tmp_path: Path) -> None:
    w = Watched(tmp_path)
    other = Watched(tmp_path)

    async def main() -> None:
        async with w.running(), other.running(until="failed"):
            assert "in use" in other.trigger.status().detail

    asyncio.run(main())


# ---------------------------------------------------------------- many


BURST = """
import os, sys
for folder in range(10):
    os.mkdir(f"{sys.argv[1]}/{folder}")
    for i in range(500):
        with open(f"{sys.argv[1]}/{folder}/{i}.h5", "wb") as f:
            f.write(b"1")
"""


def test_each_file_of_a_burst_fires(tmp_path: Path) -> None:
    async def part(w: Watched) -> None:
        writer = await asyncio.create_subprocess_exec(sys.executable, "-c", BURST, str(w.data))
        await w.count(5_000)
        assert await writer.wait() == 0
        await w.quiet()
        assert len({e.id for e in w.events}) == len({e.data["path"] for e in w.events}) == 5_000

    w = play(tmp_path, part)
    assert w.trigger.status().emitted == 5_001


@linux
def test_an_overflow_of_the_kernels_queue_loses_no_file(tmp_path: Path) -> None:
    """Block the watcher's thread until the kernel's queue of notices overflows."""
    queue = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if queue > 50_000:
        pytest.skip("the queue of this machine is too long to fill it in a test")

    held, release = threading.Event(), threading.Event()

    def hold(matches: Callable[[str, str], bool], folder: str, name: str) -> bool:
        if name == "hold.h5":
            held.set()
            release.wait(60)
        return matches(folder, name)

    async def part(w: Watched) -> None:
        (w.data / "hold.h5").write_bytes(b"")
        await asyncio.to_thread(held.wait, 30)
        n = queue // 2 + 500  # a creation and a close each
        for i in range(n):
            os.close(os.open(f"{w.data}/{i}", os.O_CREAT | os.O_WRONLY))
        (w.data / "new").mkdir()
        (w.data / "new" / "file.h5").write_bytes(b"1")
        release.set()
        await w.count(n + 2)
        await w.quiet()
        assert len({e.id for e in w.events}) == len(w.events) == n + 2
        assert any("lost notices" in d.why for d in waiting)

    waiting: list[Decision] = []
    w = Watched(tmp_path)

    async def main() -> None:
        async with w.running(hold=hold):
            waits = w.trigger._activity.record_waiting
            w.trigger._activity.record_waiting = lambda path, why: (
                waits(path, why),
                waiting.append(Decision(path, False, why, 0)),
            )[0]
            await part(w)

    asyncio.run(main())
