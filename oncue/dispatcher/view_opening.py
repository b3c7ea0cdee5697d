"""Opens the view of a log, and sets aside one that the log does not bear out.

File triggers remember which files have fired. If the log is older than that, their events may be
gone: these files fire again. Their events and tasks have the same ids, so those that are known are
not repeated.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Mapping
from pathlib import Path

from oncue.dispatcher.cluster.view_bootstrap import copy_view
from oncue.dispatcher.folder import DataFolder
from oncue.dispatcher.log_divergence import find_divergence, newest_event_us
from oncue.log import Log, Partition, Record
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION, Cancel
from oncue.protocol.topics import CONTROL
from oncue.triggers.file.ledger import forget_fired_since
from oncue.view import View

log = logging.getLogger("oncue.server")
FILL = 1_000  # records of one append
MARGIN_US = 60_000_000  # between a file's event and its row in the ledger


async def open_view(durable: Log, folder: DataFolder, server_id: str) -> View:
    """Open the view; build a new one if it is not of this log.

    Raises LogError, ViewError.
    """
    _delete_unfinished(folder.path)
    folder.set_aside_of_other_log(durable.identity)
    if durable.shared and not folder.view.exists():
        await copy_view(durable, folder.view, server_id)
    view = View.open(folder.view)
    try:
        found = await find_divergence(durable, view)
        if found is not None and durable.shared:
            await _keep_epochs(durable, view.positions())
    except BaseException:
        await view.close()
        raise
    if found is None:
        return view
    await view.close()
    # The ledgers first: once the view is away, nothing shows that they are newer than the log.
    if not durable.shared:
        await _forget_fired(folder.triggers, await newest_event_us(durable))
    folder.set_aside(found.reason, found.missing)
    return View.open(folder.view)


async def _keep_epochs(durable: Log, positions: Mapping[Partition, int]) -> None:
    """Let `oncue.control` go on where it ended, if it was made anew.

    Epochs are its offsets, and agents refuse lower ones than they know. Requests that cancel
    nothing fill the gap.
    """
    ends = await durable.end_offsets([CONTROL])
    nothing = Record(encode(Cancel(VERSION, "", ())))
    for (topic, partition), position in positions.items():
        missing = position - ends.get((topic, partition), 0) if topic == CONTROL else 0
        for count in range(missing, 0, -FILL):
            await durable.append(CONTROL, [nothing] * min(count, FILL), partition)


def _delete_unfinished(data: Path) -> None:
    """Delete the copies of the view that a killed process was making."""
    for pattern in ("view.*.copy", "view.*.part", "view.joining"):
        for path in data.glob(pattern):
            path.unlink(missing_ok=True)


async def _forget_fired(triggers: Path, since_us: int) -> None:
    if not since_us:
        return  # the log is empty, and has no rules: it was removed on purpose
    for path in sorted(triggers.glob("*/files-*.db")):
        try:
            count = await asyncio.to_thread(forget_fired_since, path, since_us - MARGIN_US)
        except sqlite3.Error as e:
            log.error("the ledger %s cannot be compared with the log: %s", path, e)
            continue
        if count:
            log.warning(
                "%d files of the trigger %s fired after the log's end: they fire again", count, path.parent.name
            )
