"""open_view: what killed processes left, and a view that the log does not bear out."""

from __future__ import annotations

import asyncio
from pathlib import Path

from oncue.config import Settings
from oncue.dispatcher.folder import DataFolder
from oncue.dispatcher.view_opening import open_view
from oncue.log import Record, open_log
from oncue.protocol.topics import EVENTS

EVENT = Record(b'{"specversion":"1.0","type":"t","source":"/s","id":"1"}', time_ms=1_000)


def open_twice(data: Path) -> dict[str, int]:
    """Apply an event, then open the view on an empty log. Return the positions."""
    folder = DataFolder(Settings(data=str(data)))

    async def work() -> dict[str, int]:
        log = await open_log(f"sqlite://{data / 'log'}")
        view = await open_view(log, folder, "srv")
        await log.append(EVENTS, [EVENT])
        await view.apply(await log.read([EVENTS]).next())
        await view.close()
        await log.close()
        for path in (data / "log").iterdir():
            path.unlink()
        log = await open_log(f"sqlite://{data / 'log'}")
        view = await open_view(log, folder, "srv")
        positions = {topic: at for (topic, _), at in view.positions().items()}
        await view.close()
        await log.close()
        return positions

    return asyncio.run(work())


def test_a_view_of_another_log_is_set_aside(tmp_path: Path) -> None:
    assert open_twice(tmp_path) == {}
    assert len(list((tmp_path / "aside").glob("*/view.db"))) == 1


def test_unfinished_copies_of_the_view_are_deleted(tmp_path: Path) -> None:
    left = ("view.0a1b2c.copy", "view.0a1b2c.copy.00ff.part", "view.joining")
    for name in left:
        (tmp_path / name).write_bytes(b"half")
    open_twice(tmp_path)
    assert not {p.name for p in tmp_path.iterdir()} & set(left)
