"""Signals that stop a long-running process in order."""

from __future__ import annotations

import signal


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return SIGTERM, SIGINT, and SIGHUP unless it is ignored, as under nohup.

    SIGHUP comes when the terminal is closed; its default ends the process at once.
    """
    hang_up = (signal.SIGHUP,) if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else ()
    return (signal.SIGTERM, signal.SIGINT, *hang_up)
