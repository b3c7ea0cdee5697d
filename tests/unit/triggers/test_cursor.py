"""SourceCursor: a trigger's position, in its folder or in the replicated state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from oncue.errors import NotFound
from oncue.protocol.records import Event
from oncue.triggers.base import ReplicatedState, StateChunk, TriggerContext
from oncue.triggers.cursor import SourceCursor


class StateInMemory:
    """A ReplicatedState that several contexts share."""

    def __init__(self) -> None:
        self.entries: list[tuple[bytes, bytes]] = [(b"other", b"x")]

    async def load(self, position: str) -> AsyncIterator[StateChunk]:
        for entry in self.entries:
            yield StateChunk([entry], "", True)

    async def persist(self, entries: Sequence[tuple[bytes, bytes]]) -> None:
        self.entries.extend(entries)


def context(folder: Path, state: ReplicatedState | None = None) -> TriggerContext:
    async def emit(events: Sequence[Event]) -> None:
        raise AssertionError

    def secrets(name: str) -> str:
        raise NotFound(name)

    folder.mkdir(exist_ok=True)
    return TriggerContext(emit, folder, secrets, 0, state)


def test_a_new_trigger_has_no_position(tmp_path: Path) -> None:
    assert asyncio.run(SourceCursor(context(tmp_path)).load()) == ""
    assert asyncio.run(SourceCursor(context(tmp_path, StateInMemory())).load()) == ""


def test_the_last_position_stored_is_loaded_after_a_restart(tmp_path: Path) -> None:
    asyncio.run(SourceCursor(context(tmp_path)).store("10"))
    asyncio.run(SourceCursor(context(tmp_path)).store("20"))

    assert asyncio.run(SourceCursor(context(tmp_path)).load()) == "20"
    assert [f.name for f in tmp_path.iterdir()] == ["cursor"]


def test_a_crash_during_a_store_leaves_the_old_position(tmp_path: Path) -> None:
    asyncio.run(SourceCursor(context(tmp_path)).store("10"))
    (tmp_path / ".cursor.0123abcd").write_text("2")  # cut short: it was to be 20

    assert asyncio.run(SourceCursor(context(tmp_path)).load()) == "10"


def test_another_server_loads_the_position_from_the_replicated_state(tmp_path: Path) -> None:
    state = StateInMemory()
    asyncio.run(SourceCursor(context(tmp_path / "first", state)).store("10"))
    asyncio.run(SourceCursor(context(tmp_path / "first", state)).store("20"))

    assert asyncio.run(SourceCursor(context(tmp_path / "second", state)).load()) == "20"
