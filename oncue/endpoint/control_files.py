"""Files in an endpoint's folder by which commands tell its agent what to do.

    stop-mode     written before SIGTERM: `drain` or `cancel`; without it, tasks get grace_s
    keep-blocks   written before SIGTERM: batch jobs go on, for the agent that starts next
    reset-blocks  blocks are asked for again, although the last ones failed

The agent removes a file when it obeys. An agent that starts removes those of a former one.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path

STOP_MODE, KEEP_BLOCKS, RESET_BLOCKS = "stop-mode", "keep-blocks", "reset-blocks"


class StopMode(Enum):
    """Treatment of running tasks when the agent stops."""

    GRACE = "grace"  # they get `grace_s`
    DRAIN = "drain"  # they run to their end
    CANCEL = "cancel"  # they end now


def request_stop(folder: Path, mode: StopMode) -> None:
    """Tell the agent how to stop, before it gets SIGTERM. Raises OSError."""
    if mode is StopMode.GRACE:
        (folder / STOP_MODE).unlink(missing_ok=True)
    else:
        (folder / STOP_MODE).write_text(mode.value)


def requested_stop(folder: Path) -> StopMode:
    """Return how the agent shall stop."""
    try:
        return StopMode((folder / STOP_MODE).read_text().strip())
    except (OSError, ValueError):
        return StopMode.GRACE


def forget_requests(folder: Path) -> None:
    """Remove what was asked of a former agent."""
    for name in (STOP_MODE, KEEP_BLOCKS, RESET_BLOCKS):
        (folder / name).unlink(missing_ok=True)
