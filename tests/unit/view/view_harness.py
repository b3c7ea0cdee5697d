"""A view that gets records with offsets as a log gives them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from oncue.log import Record, RecordBatch
from oncue.protocol.codec import encode
from oncue.view import View


class ViewHarness:
    """A view; `append` applies records at the next offsets of their partition."""

    def __init__(self, path: Path) -> None:
        self.view = View.open(path)

    async def append(self, topic: str, *records: Any, key: bytes = b"", partition: int = 0) -> Any:
        first = self.view.positions().get((topic, partition), 0)
        made = [r if isinstance(r, Record) else Record(encode(r), key=key, time_ms=5) for r in records]
        return await self.view.apply([RecordBatch(topic, partition, range(first, first + len(made)), made)])


def run(path: Path, work: Callable[[ViewHarness], Awaitable[None]]) -> None:
    async def main() -> None:
        harness = ViewHarness(path / "view.db")
        try:
            await work(harness)
        finally:
            await harness.view.close()

    asyncio.run(main())
