"""What cannot travel is refused by name, with a remedy."""

from __future__ import annotations

import asyncio
import csv
import gzip
import io
import mmap
import os
import re
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from oncue.errors import CannotPack
from oncue.functions import pack_function
from oncue.protocol import payload


def numbers() -> Iterator[int]:
    yield 1


async def async_numbers() -> AsyncIterator[int]:
    yield 1


async def coroutine() -> None: ...


class Weak:
    pass


OPEN: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: path.open(),
    "binary": lambda path: path.open("rb"),
    "unbuffered": lambda path: path.open("rb", buffering=0),
    "writing": lambda path: path.open("w"),
    "both": lambda path: path.open("r+b"),
    "compressed": lambda path: gzip.open(path),  # noqa: SIM115
    "temporary": lambda path: tempfile.NamedTemporaryFile(),  # noqa: SIM115
    "spooled": lambda path: tempfile.SpooledTemporaryFile(),  # noqa: SIM115
    "wrapped": lambda path: io.TextIOWrapper(io.BytesIO(b"x")),
}


@pytest.mark.parametrize("name", OPEN)
def test_an_open_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    path.write_text("one\ntwo\n")
    with OPEN[name](path) as file, pytest.raises(CannotPack) as caught:
        payload.pack_args((1, file), {})

    assert caught.value.message.startswith("argument 2: ")
    assert "open file" in caught.value.message
    assert caught.value.remedy == "pass the file's name and open it inside the function"


@dataclass
class Holder:
    name: str
    file: Any


def test_a_file_inside_of_something_is_named_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    path.write_text("one\n")
    with path.open() as file:
        for value, place in (([1, file], "element 1"), ({"a": file}, "entry 'a'"), (Holder("x", file), "'file'")):
            with pytest.raises(CannotPack, match=f"argument 1: .*{place}.* an open file .*scan.h5"):
                payload.pack_args((value,), {})
        with pytest.raises(CannotPack, match="argument file: an open file"):
            payload.pack_args((), {"file": file})
        with pytest.raises(CannotPack, match="'file' is an open file"):
            pack_function(lambda: file.read())
        with pytest.raises(CannotPack, match="open file"):
            pack_function(partial(print, file=file))
        with pytest.raises(CannotPack, match="open file"):
            payload.pack(file)  # as a result


def test_files_in_memory_and_the_standard_streams_travel() -> None:
    text, content = io.StringIO("abc"), io.BytesIO(b"abc")
    text.read(1)

    assert payload.unpack(payload.pack(text)).read() == "bc"
    assert payload.unpack(payload.pack(content)).read() == b"abc"
    assert payload.unpack(payload.pack([sys.stdout]))[0] is sys.stdout


class Remote(io.RawIOBase):
    """A file that says how it is pickled, as those of fsspec do."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __reduce__(self) -> Any:
        return Remote, (self.url,)


def test_a_file_that_says_how_it_is_pickled_travels() -> None:
    assert payload.unpack(payload.pack(Remote("s3://x"))).url == "s3://x"


OTHERS: dict[str, tuple[Callable[[], Any], str]] = {
    "socket": (socket.socket, "connect inside"),
    "lock": (threading.Lock, "one process"),
    "rlock": (threading.RLock, "one process"),
    "condition": (threading.Condition, "one process"),
    "event": (threading.Event, "one process"),
    "semaphore": (threading.Semaphore, "one process"),
    "barrier": (lambda: threading.Barrier(2), "one process"),
    "local": (threading.local, "one process"),
    "thread": (lambda: threading.Thread(target=print), "start the thread inside"),
    "timer": (lambda: threading.Timer(1, print), "start the thread inside"),
    "generator": (numbers, "list"),
    "async generator": (async_numbers, "list"),
    "database": (lambda: sqlite3.connect(":memory:"), "connect inside"),
    "cursor": (lambda: sqlite3.connect(":memory:").cursor(), "connect inside"),
    "process": (lambda: subprocess.Popen(["true"]), "start the process inside"),
    "future": (Future, "result"),
    "executor": (lambda: ThreadPoolExecutor(1), "executor inside"),
    "mapped": (lambda: mmap.mmap(-1, 10), "map it inside"),
    "weak": (lambda: weakref.ref(Weak), "object itself"),
    "event loop": (asyncio.new_event_loop, "inside the function"),
    "rows": (lambda: csv.reader(["1,2"]), "list of its rows"),
    "entry": (lambda: next(iter(os.scandir("/"))), "entry.path"),
    "folder": (lambda: os.scandir("/"), "folder's name"),
    "match": (lambda: re.match("a", "a"), "match.group()"),
    "array file": (
        lambda: pytest.importorskip("h5py").File("x.h5", "w", driver="core", backing_store=False),
        "file's name",
    ),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("name", OTHERS)
def test_other_things_of_one_process_are_refused_with_a_remedy(name: str) -> None:
    make, remedy = OTHERS[name]
    value = make()
    try:
        for given in (value, [1, value], {"x": Holder("x", value)}):
            with pytest.raises(CannotPack) as caught:
                payload.pack_args((given,), {})
            assert caught.value.message.startswith("argument 1: ")
            assert remedy in caught.value.remedy
    finally:
        ends = {"cursor": "connection.close", "process": "wait", "executor": "shutdown"}
        closing = ends.get(name, "close" if hasattr(value, "close") else "__repr__")
        attrgetter(closing)(value)()


def test_a_coroutine_is_refused_with_a_remedy() -> None:
    made = coroutine()
    with pytest.raises(CannotPack) as caught:
        payload.pack_args((made,), {})
    made.close()

    assert "async function" in caught.value.remedy


def test_a_long_list_is_not_searched_for_ever() -> None:
    with pytest.raises(CannotPack, match="argument 1"):
        payload.pack_args(([(n,) for n in range(300_000)] + [threading.Lock()],), {})
