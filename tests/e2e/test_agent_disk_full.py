"""An endpoint on a disk that is small, or that others have filled."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.running import PATIENCE_S, System, signalled, system_in
from tests.small_disk import filled, mounted

SIZE_MB = 4  # less than the size at which a journal is written anew where there is room
TASKS, ARGUMENT = 600, "x" * 20_000


@contextlib.contextmanager
def endpoint_on(disk: Path, folder: Path) -> Iterator[System]:
    with system_in(folder, "--no-endpoint") as system:
        place = str(disk / "ep")
        system.oncue("endpoint", "register", "small", "--dir", place, "--workers", "1")
        agent = system.start("endpoint", "start", "small", "--dir", place)
        try:
            system.await_connected("small")
            yield system
        finally:
            signalled(agent, signal.SIGTERM)


def size_of(text: str) -> int:
    return len(text)


def test_a_journal_on_a_small_disk_is_shortened(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", SIZE_MB) as disk, endpoint_on(disk, tmp_path) as system:
        with system.client() as client:
            tasks = [client.submit(size_of, ARGUMENT + str(n), endpoint="small") for n in range(TASKS)]
            assert all(task.result(PATIENCE_S) > len(ARGUMENT) for task in tasks)
        assert (disk / "ep" / "journal").stat().st_size < SIZE_MB << 20


def test_a_full_disk_of_an_endpoint_is_named(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", SIZE_MB) as disk, endpoint_on(disk, tmp_path) as system:
        (disk / "ep" / "journal.spare").unlink()  # nothing is left to be given up
        with system.client() as client:
            assert client.submit(size_of, "", endpoint="small").result(PATIENCE_S) == 0  # the function is there
            filler = filled(disk)
            tasks = [client.submit(size_of, ARGUMENT + str(n), endpoint="small") for n in range(TASKS)]

            def named() -> bool:
                return str(disk / "ep" / "journal") in system.json("endpoints", "list")[0]["why"]

            system.await_true(named, "the list names the file")
            tasks.append(client.submit(size_of, ARGUMENT + "last", endpoint="small"))
            why = tasks[-1].info().why
            assert "takes no new tasks" in why
            assert "No space left on device" in why
            filler.unlink()
            assert all(task.result(PATIENCE_S) > len(ARGUMENT) for task in tasks)
        system.await_true(lambda: "takes no" not in system.json("endpoints", "list")[0]["why"], "it takes tasks again")
