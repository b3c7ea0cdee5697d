"""Garbage collection of processes that hold many objects for long."""

from __future__ import annotations

import gc


def collect_seldom() -> None:
    """Let the collector look at fewer objects again and again.

    Rules, tasks and views make many that stay. Measured: with Python's default 10,000 rules take
    twice the time.
    """
    gc.set_threshold(50_000, 50, 50)


def keep_what_is_here() -> None:
    """Take what was made so far out of the collector's sight: it stays."""
    gc.collect()
    gc.freeze()
