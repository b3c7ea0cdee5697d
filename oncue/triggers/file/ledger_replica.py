"""LedgerReplica: copies a ledger to the trigger's replicated state, and back.

The server that runs the trigger next resumes from the copy.

    watcher's thread: ledger ──rows, meta──► queue ──parts──► ReplicatedState.persist
    before the watcher starts: ReplicatedState.load ──newer rows──► ledger

The copy lags a little. Files that it lacks after a `kill -9` fire again with the same event ids.
Only the end of the initial scan is waited for (`flush`): nothing else records which files existed
before. If the replicated state is empty and the ledger is not, all of the ledger is uploaded.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from oncue.errors import OncueError
from oncue.triggers.base import ReplicatedState
from oncue.triggers.file.ledger import ANY_INODE, PART, FileRow, Ledger
from oncue.triggers.file.stability import FileKey

POSITION = "copied"  # meta: position in the replicated state up to which the ledger has its entries
RETRY_S, CLOSE_S = 1.0, 2.0
Entry = tuple[bytes, bytes]
_FILE, _META = b"f", b"m"
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, int, int, int]).decode


class LedgerReplica:
    """A LedgerListener. Call `restore`, then start `run` as a task."""

    def __init__(self, state: ReplicatedState, folder: str) -> None:
        """Prepare the copy of one watched folder.

        `folder` identifies it, since a deploy may give the trigger another one.
        """
        self._state, self._prefix = state, folder.encode() + b"\0"
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[list[Entry]] = asyncio.Queue()

    async def restore(self, path: Path) -> None:
        """Merge the replicated state into the ledger.

        Raises Conflict, LogError, sqlite3.Error.
        """
        ledger = await asyncio.to_thread(Ledger, path)
        try:
            known = from_start = False
            meta: dict[str, str] = {}
            position = ledger.meta(POSITION)
            async for chunk in self._state.load(position):
                rows, forgotten, more = self._parse(chunk.entries)
                meta |= more
                known, from_start, position = known or bool(rows or more), chunk.from_start, chunk.position
                if rows or forgotten:
                    await asyncio.to_thread(ledger.merge, rows, forgotten, {})
            if from_start and not known:
                await self._upload_all(ledger)
            await asyncio.to_thread(ledger.merge, (), (), meta | {POSITION: position})
        finally:
            await asyncio.to_thread(ledger.close)

    async def _upload_all(self, ledger: Ledger) -> None:
        for part in ledger.all_rows():
            await self._state.persist(self._row_entries(part))
        if meta := {key: text for key in ("selects", "looking") if (text := ledger.meta(key))}:
            await self._state.persist(self._meta_entries(meta))

    async def run(self) -> None:
        """Upload queued entries, until cancelled."""
        while True:
            parts = [await self._queue.get()]
            while not self._queue.empty() and sum(map(len, parts)) < PART:
                parts.append(self._queue.get_nowait())
            await self._persist([entry for part in parts for entry in part])
            for _ in parts:
                self._queue.task_done()

    async def _persist(self, entries: Sequence[Entry]) -> None:
        while True:
            try:
                return await self._state.persist(entries)
            except (OncueError, OSError):  # the status says so
                await asyncio.sleep(RETRY_S)

    async def close(self, running: asyncio.Task[None]) -> None:
        """Flush for CLOSE_S at most, after the watcher has ended, and cancel `run`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self.flush()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    async def flush(self) -> None:
        """Wait until the entries queued so far are in the replicated state."""
        await self._queue.join()

    # ------------------------------------------------------------ LedgerListener (watcher's thread)

    def rows(self, rows: Sequence[FileRow]) -> None:
        self._enqueue(self._row_entries(rows))

    def forgotten(self, keys: Sequence[FileKey]) -> None:
        self._enqueue([(self._file(*key), b"") for key in keys])

    def meta(self, values: Mapping[str, str]) -> None:
        self._enqueue(self._meta_entries(values))

    def _enqueue(self, entries: list[Entry]) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, entries)

    # ------------------------------------------------------------ entries

    def _row_entries(self, rows: Sequence[FileRow]) -> list[Entry]:
        return [(self._file(r.folder, r.name), _encode((r.state, r.size, r.mtime_ns, r.at_us))) for r in rows]

    def _meta_entries(self, values: Mapping[str, str]) -> list[Entry]:
        return [(self._prefix + _META + key.encode(), text.encode() or b" ") for key, text in values.items()]

    def _file(self, folder: str, name: str) -> bytes:
        return self._prefix + _FILE + f"{folder}\0{name}".encode()

    def _parse(self, entries: Sequence[Entry]) -> tuple[list[FileRow], list[FileKey], dict[str, str]]:
        """Return (rows, forgotten keys, meta), the newest of each.

        Entries of other folders are skipped.
        """
        rows: dict[FileKey, FileRow | None] = {}
        meta: dict[str, str] = {}
        for key, value in entries:
            if not key.startswith(self._prefix):
                continue
            kind, text = key[len(self._prefix) :][:1], key[len(self._prefix) + 1 :].decode()
            if kind == _META:
                meta[text] = value.decode().strip()
            elif kind == _FILE:
                folder, _, name = text.rpartition("\0")
                state, size, mtime_ns, at_us = _decode(value) if value else (0, 0, 0, 0)
                rows[folder, name] = FileRow(folder, name, state, ANY_INODE, size, mtime_ns, at_us) if value else None
        return [row for row in rows.values() if row], [key for key, row in rows.items() if row is None], meta
