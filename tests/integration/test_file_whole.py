"""A file is one event, whole, at once: links, several writers, other users' files, times, inodes."""

import asyncio
import contextlib
import ctypes
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from test_file_trigger import nobody, play
from watched import Watched

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's notices and leases of Linux")
root_only = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="files of two users: run the tests as root"
)
AT_FDCWD, AT_SYMLINK_FOLLOW, RENAME_EXCHANGE = -100, 0x400, 2


# ---------------------------------------------------------------- every way a name can come to be


@pytest.fixture(params=["with CAP_LEASE", "without"])
def opens(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test as if the server could ask about files of other users, and as if not."""
    may_ask = request.param == "with CAP_LEASE"
    monkeypatch.setattr("oncue.triggers.file.watch.open.may_ask_about_others", lambda: may_ask)


def linked_and_removed(folder: Path) -> None:
    """OpenSSH's SFTP server renames like this."""
    (folder / ".u.tmp").write_bytes(b"1234")
    os.link(folder / ".u.tmp", folder / "scan.h5")
    os.unlink(folder / ".u.tmp")


def nameless(folder: Path) -> None:
    fd = os.open(folder, os.O_TMPFILE | os.O_WRONLY)
    os.write(fd, b"1234")
    source, target = f"/proc/self/fd/{fd}".encode(), bytes(folder / "scan.h5")
    assert ctypes.CDLL(None).linkat(AT_FDCWD, source, AT_FDCWD, target, AT_SYMLINK_FOLLOW) == 0
    os.close(fd)


def linked_from_outside(folder: Path) -> None:
    outside = folder.parent / "outside"
    outside.write_bytes(b"1234")
    os.link(outside, folder / "scan.h5")
    os.unlink(outside)


def exchanged(folder: Path) -> None:
    (folder / ".new").write_bytes(b"1234")
    outside = folder.parent / "outside"
    outside.write_bytes(b"1234")
    libc = ctypes.CDLL(None, use_errno=True)
    (folder / ".scan.h5").write_bytes(b"")
    os.rename(folder / ".scan.h5", folder / "scan.h5.tmp")
    if libc.renameat2(AT_FDCWD, bytes(outside), AT_FDCWD, bytes(folder / "scan.h5.tmp"), RENAME_EXCHANGE):
        pytest.skip("this filesystem cannot exchange names")
    os.rename(folder / "scan.h5.tmp", folder / "scan.h5")


def renamed_while_open(folder: Path) -> None:
    with (folder / ".scan").open("wb") as file:
        file.write(b"12")
        file.flush()
        os.rename(folder / ".scan", folder / "scan.h5")
        file.write(b"34")


@pytest.mark.usefixtures("opens")
@pytest.mark.parametrize("way", [linked_and_removed, nameless, linked_from_outside, exchanged])
def test_a_name_that_comes_without_a_close_is_noticed_at_once(tmp_path: Path, way: Callable[[Path], None]) -> None:
    async def part(w: Watched) -> None:
        way(w.data)
        (event,) = await w.count(1)
        assert (event.data["name"], event.data["size"], event.data["cause"]) == ("scan.h5", 4, "rename")
        await w.quiet()
        assert len(w.events) == 1

    play(tmp_path, part, rescan="1h")


def test_a_node_made_without_an_open_fires(tmp_path: Path) -> None:
    async def part(w: Watched) -> None:
        os.mknod(w.data / "scan.h5", stat.S_IFREG | 0o644)
        (event,) = await w.count(1)
        assert event.data["size"] == 0

    play(tmp_path, part, rescan="1h")


def test_files_of_a_folder_moved_in_came_by_rename(tmp_path: Path) -> None:
    async def part(w: Watched) -> None:
        (tmp_path / "run" / "deep").mkdir(parents=True)
        (tmp_path / "run" / "a.h5").write_bytes(b"1")
        (tmp_path / "run" / "deep" / "b.h5").write_bytes(b"1")
        (tmp_path / "run").rename(w.data / "run")
        assert {e.data["cause"] for e in await w.count(2)} == {"rename"}

    play(tmp_path, part, rescan="1h")


@pytest.mark.usefixtures("opens")
def test_stable_alone_fires_a_file_that_stays_open(tmp_path: Path) -> None:
    async def part(w: Watched) -> None:
        with (w.data / "open.h5").open("wb") as file:
            file.write(b"1234")
            file.flush()
            (event,) = await w.count(1)
            assert event.data["cause"] == "stable"

    play(tmp_path, part, ready={"stable": "200ms"}, rescan="1h")


@pytest.mark.usefixtures("opens")
@pytest.mark.parametrize("ready", [{"rename": True}, {"close_write": True}])
def test_a_slow_writer_is_no_link(tmp_path: Path, ready: dict[str, bool]) -> None:
    """It is open for longer than the check of a new name takes, and has not been renamed."""

    async def part(w: Watched) -> None:
        with (w.data / "slow.h5").open("wb") as file:
            assert "open for writing" in await w.decided("slow.h5")
            file.write(b"1234")
        await w.until(lambda: "open for writing" not in w.trigger.decisions()[-1].why)
        latest = w.trigger.decisions()[-1]
        assert latest.fired is ("close_write" in ready)
        assert "close" in latest.why

    play(tmp_path, part, ready=ready)


# ---------------------------------------------------------------- nobody may have it open


def test_the_last_of_two_writers_fires_it(tmp_path: Path) -> None:
    async def part(w: Watched) -> None:
        first, second = (w.data / "a.h5").open("wb"), (w.data / "a.h5").open("ab")
        with second:
            with first:
                first.write(b"12")
            assert "open for writing" in await w.decided("a.h5")
            await w.quiet()
            assert w.names == []
            second.write(b"34")
        (event,) = await w.count(1)
        assert (event.data["size"], event.data["cause"]) == (4, "close_write")
        await w.quiet()
        assert len(w.events) == 1

    play(tmp_path, part)


@pytest.mark.parametrize("ready", [{"any": ["close_write", "rename"]}, {"rename": True, "stable": "200ms"}])
def test_a_file_renamed_while_it_is_written_fires_at_its_close(tmp_path: Path, ready: dict[str, object]) -> None:
    async def part(w: Watched) -> None:
        with (w.data / ".a").open("wb") as file:
            file.write(b"12")
            file.flush()
            os.rename(w.data / ".a", w.data / "a.h5")
            assert "open for writing" in await w.decided("a.h5")
            file.write(b"34")
        (event,) = await w.count(1)
        assert event.data["size"] == 4

    play(tmp_path, part, ready=ready)


@pytest.mark.parametrize(("link", "symlinks"), [(os.link, "ignore"), (os.symlink, "files")])
def test_a_link_to_a_file_that_is_written_fires_at_its_close(
    tmp_path: Path, link: Callable[[Path, Path], None], symlinks: str
) -> None:
    """The close is reported under the other name, outside of the folder."""

    async def part(w: Watched) -> None:
        outside = tmp_path / "outside"
        with outside.open("wb") as file:
            file.write(b"12")
            file.flush()
            link(outside, w.data / "a.h5")
            assert "open for writing" in await w.decided("a.h5")
            file.write(b"34")
        (event,) = await w.count(1)
        assert event.data["size"] == 4

    play(tmp_path, part, symlinks=symlinks, rescan="1h")


def test_a_file_that_is_opened_again_while_it_must_be_stable_waits(tmp_path: Path) -> None:
    async def part(w: Watched) -> None:
        path = w.data / "a.h5"
        path.write_bytes(b"12")
        assert "unchanged" in await w.decided("a.h5")
        with path.open("ab") as file:
            await w.until(lambda: "open for writing" in w.trigger.decisions()[-1].why)
            file.write(b"34")
        (event,) = await w.count(1)
        assert event.data["size"] == 4

    play(tmp_path, part, ready={"any": ["close_write"], "stable": "200ms"})


# ---------------------------------------------------------------- files of other users

OTHER = """
import os, sys
os.setgid(12345)
os.setuid(12345)
for line in sys.stdin:
    exec(line)
    print(flush=True)
"""


class OtherUser:
    """A process of another user. Each `run` is one line of Python."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", OTHER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    async def run(self, line: str) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        assert await asyncio.to_thread(self._process.stdout.readline) == "\n"

    def end(self) -> None:
        self._process.communicate(timeout=30)


@contextlib.contextmanager
def two_users() -> Iterator[tuple[Path, OtherUser]]:
    """Run the trigger as the user nobody; another user writes into its folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").mkdir()
        folder.chmod(0o755)
        other = OtherUser()
        try:
            with nobody(folder, folder / "data"):
                (folder / "data").chmod(0o777)
                yield folder, other
        finally:
            other.end()


def as_nobody(part: Callable[[Watched, OtherUser], Awaitable[None]], **options: object) -> Watched:
    with two_users() as (folder, other):
        return play(folder, lambda w: part(w, other), **options)


@root_only
@pytest.mark.parametrize("start", ["f = open({path!r}, 'wb')", "f = open({path!r}, 'ab')"])
def test_another_users_file_fires_once_when_it_is_closed(start: str) -> None:
    async def part(w: Watched, other: OtherUser) -> None:
        path = str(w.data / "a.h5")
        await other.run(start.format(path=path))
        for pause_s in (0.3, 0.3, 0.3, 0.3, 4.2):  # a few scans; then twice what a file found must be unchanged
            await other.run("f.write(b'x' * 1000); f.flush()")
            await asyncio.sleep(pause_s)
        await w.quiet()
        assert w.names == []
        await other.run("f.close()")
        (event,) = await w.count(1)
        assert (event.data["size"], event.data["cause"]) == (5000, "close_write")
        await w.quiet()
        assert len(w.events) == 1

    as_nobody(part, rescan="200ms")


@root_only
@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("open(d + '/.u', 'w').write('1234'); os.rename(d + '/.u', d + '/a.h5')", "rename"),
        ("open(d + '/.u', 'w').write('1234'); os.link(d + '/.u', d + '/a.h5'); os.unlink(d + '/.u')", "rename"),
        ("open(d + '/a.h5', 'w').write('1234')", "close_write"),
    ],
)
def test_another_users_complete_file_fires(line: str, cause: str) -> None:
    async def part(w: Watched, other: OtherUser) -> None:
        await other.run(f"d = {str(w.data)!r}; {line}")
        (event,) = await w.count(1)
        assert (event.data["name"], event.data["size"], event.data["cause"]) == ("a.h5", 4, cause)

    as_nobody(part, rescan="1h")


@root_only
def test_another_users_file_renamed_while_it_is_written_fires_at_its_close() -> None:
    async def part(w: Watched, other: OtherUser) -> None:
        d = str(w.data)
        await other.run(f"f = open({d + '/.u'!r}, 'w'); f.write('12'); f.flush()")
        await other.run(f"os.rename({d + '/.u'!r}, {d + '/a.h5'!r})")
        await asyncio.sleep(2.5)  # longer than a file must be unchanged that came by rename
        await w.quiet()
        assert w.names == []
        await other.run("f.write('34'); f.close()")
        (event,) = await w.count(1)
        assert event.data["size"] == 4

    as_nobody(part, rescan="200ms")


@root_only
def test_another_users_file_found_by_a_scan_fires_when_it_does_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oncue.triggers.file.readiness.UNKNOWN_S", 1.0)

    async def main(folder: Path, other: OtherUser) -> None:
        w = Watched(folder)
        async with w.running():
            await w.quiet()
        await other.run(f"open({str(w.data / 'whole.h5')!r}, 'w').write('1234')")
        await other.run(f"f = open({str(w.data / 'half.h5')!r}, 'w'); f.write('12'); f.flush()")
        async with w.running():
            await w.decided("half.h5")
            await other.run("f.write('34'); f.flush()")  # from now on its close is waited for
            await w.until(lambda: w.names == ["whole.h5"])
            await asyncio.sleep(1.5)
            await w.quiet()
            assert w.names == ["whole.h5"]
            await other.run("f.close()")
            await w.count(2)
            assert w.events[1].data["size"] == 4

    with two_users() as (folder, other):
        asyncio.run(main(folder, other))


# ---------------------------------------------------------------- times and attributes


def changes_of_times(path: Path) -> None:
    os.utime(path)
    os.utime(path, (1_600_000_000, 1_600_000_000))
    path.chmod(0o600)
    with contextlib.suppress(OSError):  # not on each filesystem
        os.setxattr(path, "user.beamline", b"2bm")


def test_copies_with_their_times_fire_once(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"1234")
    os.utime(source, (1_600_000_000, 1_600_000_000))

    async def part(w: Watched) -> None:
        for i in range(100):
            shutil.copy2(source, w.data / f"{i}.h5")
        await w.until(lambda: len(w.events) >= 100)
        await asyncio.sleep(1.0)  # several scans
        await w.quiet()
        assert len(w.events) == 100

    play(tmp_path, part, rescan="100ms")


@pytest.mark.parametrize("rescan", ["100ms", "1h"])
def test_a_change_of_times_and_attributes_alone_is_no_new_content(tmp_path: Path, rescan: str) -> None:
    w = Watched(tmp_path, rescan=rescan)
    (w.data / "old.h5").write_bytes(b"1")
    w.data.joinpath("while-down.h5").write_bytes(b"1")

    async def main() -> None:
        async with w.running():
            (w.data / "a.h5").write_bytes(b"1234")
            await w.count(1)
            for name in ("a.h5", "old.h5"):
                changes_of_times(w.data / name)
            await asyncio.sleep(0.7)
            os.utime(w.data / "a.h5")  # a later time than that of its event
            await asyncio.sleep(1.0)
            await w.quiet()
            assert w.names == ["a.h5"]
        for name in ("a.h5", "while-down.h5"):
            changes_of_times(w.data / name)
        async with w.running():
            await w.quiet()
            assert w.names == ["a.h5"]
            with (w.data / "a.h5").open("r+b") as file:
                file.write(b"5678")  # as large as before
            await w.count(2)

    asyncio.run(main())


@root_only
def test_a_change_of_times_alone_by_another_user_is_no_new_content(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oncue.triggers.file.readiness.UNKNOWN_S", 0.5)

    async def part(w: Watched, other: OtherUser) -> None:
        path = str(w.data / "a.h5")
        await other.run(f"open({path!r}, 'w').write('1234')")
        await w.count(1)
        await other.run(f"os.utime({path!r})")
        await asyncio.sleep(2.0)
        await other.run(f"os.chmod({path!r}, 0o600); os.utime({path!r}, (1, 1))")
        await asyncio.sleep(2.0)
        await w.quiet()
        assert len(w.events) == 1
        await other.run(f"f = open({path!r}, 'r+'); f.write('5678'); f.flush(); os.utime({path!r}, (1, 1))")
        await asyncio.sleep(1.0)
        await other.run("f.close()")
        await w.count(2)

    as_nobody(part, rescan="200ms")


@pytest.mark.parametrize("down", [False, True])
def test_new_content_of_the_same_size_fires(tmp_path: Path, down: bool) -> None:
    w = Watched(tmp_path)

    async def main() -> None:
        async with w.running():
            (w.data / "a.h5").write_bytes(b"1234")
            await w.count(1)
            if not down:
                (w.data / "a.h5").write_bytes(b"5678")
                await w.count(2)
        if down:
            (w.data / "a.h5").write_bytes(b"5678")
            async with w.running():
                await w.count(2)

    asyncio.run(main())


@pytest.mark.parametrize("down", [False, True])
def test_a_new_file_with_the_name_size_time_and_inode_of_a_former_one_fires(tmp_path: Path, down: bool) -> None:
    w = Watched(tmp_path)
    path = w.data / "a.h5"

    def write(content: bytes) -> int:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        os.write(fd, content)
        os.utime(fd, (1_600_000_000, 1_600_000_000))
        os.close(fd)
        return path.stat().st_ino

    async def main() -> None:
        ino = 0
        async with w.running():
            ino = write(b"0000")
            await w.count(1)
        for n in range(1, 20):  # the filesystem chooses the inode number
            before, content = ino, f"{n:04}".encode()
            async with w.running():
                if not down:
                    path.unlink()
                    ino = write(content)
                    await w.count(n + 1)
            if down:
                path.unlink()
                ino = write(content)
                async with w.running():
                    await w.count(n + 1)
            if ino == before:
                break
        else:
            pytest.skip("this filesystem does not use an inode number again")
        assert len({event.id for event in w.events}) == len(w.events)

    asyncio.run(main())


# ---------------------------------------------------------------- the same content under another name


@pytest.mark.parametrize("refire", ["changed", "content"])
def test_files_of_a_renamed_folder(tmp_path: Path, refire: str) -> None:
    w = Watched(tmp_path, refire=refire, rescan="200ms")
    (w.data / "old").mkdir()
    (w.data / "old" / "existing.h5").write_bytes(b"1")

    async def main() -> None:
        async with w.running():
            (w.data / "run").mkdir()
            for i in range(20):
                (w.data / "run" / f"{i}.h5").write_bytes(b"1")
            await w.count(20)
            (w.data / "run").rename(w.data / "run-1")
            (w.data / "old").rename(w.data / "old-1")
            if refire == "changed":
                await w.count(41)
                return
            await w.until(lambda: w.trigger.status().skipped >= 21)
            os.rename(w.data / "run-1" / "0.h5", w.data / "zero.h5")
            assert "fired as run" in await w.decided("zero.h5")
        os.link(w.data / "zero.h5", w.data / "link.h5")  # found at the start
        async with w.running():
            assert "(refire: content)" in await w.decided("link.h5")
            await w.quiet()
            assert len(w.events) == 20
            (w.data / "zero.h5").write_bytes(b"22")
            await w.count(21)

    asyncio.run(main())


# ---------------------------------------------------------------- limits of the kernel


@root_only
def test_beyond_the_limit_of_inotify_instances_the_folder_is_scanned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oncue.triggers.file.watch.scan_only.WATCH_AGAIN_S", 0.5)
    limit = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text())
    if limit > 2_000:
        pytest.skip(f"this kernel allows {limit} instances, too many to use up")
    libc = ctypes.CDLL(None)
    taken: list[int] = []

    async def part(w: Watched) -> None:
        assert "max_user_instances" in w.trigger.status().detail
        (w.data / "a.h5").write_bytes(b"1")
        (event,) = await w.count(1)
        assert event.data["cause"] == "rescan"
        while taken:
            os.close(taken.pop())
        await w.until(lambda: w.trigger.status().detail == "")
        (w.data / "b.h5").write_bytes(b"1")
        await w.count(2)

    with tempfile.TemporaryDirectory() as name, nobody(Path(name), uid=50_000 + os.getpid() % 10_000):
        try:
            while (fd := libc.inotify_init1(os.O_CLOEXEC)) >= 0:
                taken.append(fd)
            play(Path(name), part, rescan="200ms")
        finally:
            while taken:
                os.close(taken.pop())


def test_without_a_watch_for_the_folder_itself_it_is_scanned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        ctypes.set_errno(28)  # ENOSPC
        return -1

    monkeypatch.setattr("oncue.triggers.file.watch.inotify.inotify_add_watch", refuse)

    async def part(w: Watched) -> None:
        assert "max_user_watches" in w.trigger.status().detail
        (w.data / "a.h5").write_bytes(b"1")
        await w.count(1)

    play(tmp_path, part, rescan="200ms")


def test_a_file_is_explained_whatever_the_form_of_its_name(tmp_path: Path) -> None:
    async def part(w: Watched) -> None:
        (w.data / "e\u0301.h5").write_bytes(b"1")
        await w.count(1)
        assert (await w.trigger.explain("\u00e9.h5")).state == "fired"
        assert "case: insensitive" in (await w.trigger.explain("X.H5")).why

    play(tmp_path, part, glob="*.h5")
