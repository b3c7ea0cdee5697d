"""SourceCursor: the durable position of a trigger in its source.

For sources that are read forward: a page token, an offset, the time of the last poll. A trigger of
many items that come in no order needs a ledger instead (file/ledger.py).
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from oncue.triggers.base import TriggerContext

_KEY = b"cursor"


class SourceCursor:
    """One short text.

    It is in the log where servers share one, else in the trigger's folder.
    """

    def __init__(self, context: TriggerContext) -> None:
        self._state, self._file = context.state, context.folder / "cursor"

    async def load(self) -> str:
        """Return the stored position; "" if there is none. Raises LogError, OSError."""
        if self._state is None:
            return await asyncio.to_thread(_read, self._file)
        found = ""
        async for chunk in self._state.load(""):
            for key, value in chunk.entries:
                if key == _KEY:
                    found = value.decode()
        return found

    async def store(self, position: str) -> None:
        """Store the position durably. Call it after `emit`, never before.

        Raises LogError, OSError.
        """
        if self._state is None:
            await asyncio.to_thread(_write, self._file, position)
        else:
            await self._state.persist([(_KEY, position.encode())])


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""


def _write(file: Path, text: str) -> None:
    """Replace the file's content.

    The rename is atomic: a crash leaves the old text or the new one.
    """
    new = file.with_suffix(".new")
    with new.open("w") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    new.replace(file)
