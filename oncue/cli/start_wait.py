"""Waits for a server that starts, while it makes progress, and shows it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import click

PAUSE_S = 0.05
SHOW_S = 5.0  # between two lines where nobody watches; a terminal's line is rewritten at once


def await_start(ready: Callable[[], bool], progress: Callable[[], str], patience_s: float) -> bool:
    """Poll until `ready`. Return False if `progress` has not changed for `patience_s`.

    A start may take hours: a view is built from the log.
    """
    seen, shown = "", ""
    changed = shown_at = time.monotonic()
    watched = sys.stderr.isatty()
    try:
        while not ready():
            now, text = time.monotonic(), progress()
            if text != seen:
                seen, changed = text, now
            elif now - changed > patience_s:
                return False
            if seen != shown and (watched or now - shown_at >= SHOW_S):
                shown, shown_at = seen, now
                click.echo(f"\r\x1b[K{seen}" if watched else seen, err=True, nl=not watched)
            time.sleep(PAUSE_S)
        return True
    finally:
        if watched and shown:
            click.echo("\r\x1b[K", err=True, nl=False)
