"""SourceCursor: the durable position of a trigger in its source.

For sources that are read forward: a page token, an offset, the time of the last poll. A trigger of
many items that come in no order needs a ledger instead (file/ledger.py).
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from oncue.disk.durable_files import replace_file
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
            await asyncio.to_thread(replace_file, self._file, position.encode())
        else:
            await self._state.persist([(_KEY, position.encode())])


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""
