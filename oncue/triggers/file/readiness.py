"""Readiness of a file: decides from its notices whether it is complete.

Whatever says that a file is complete (a close, a rename, a scan), nobody may have it open for
writing. The kernel tells so for the files of the server's own user, and of everybody where the
server has CAP_LEASE. Where the kernel does not tell, the close is waited for if this watch hears
it; else the file must stay unchanged for a while.

Pure, except for the question to the kernel.
"""

from __future__ import annotations

from collections.abc import Callable

from oncue.triggers.file.options import FileSpec
from oncue.triggers.file.watch.base import (
    BACKFILL,
    CHANGED,
    CLOSED,
    CREATED,
    FOLDER_MOVED,
    FOUND,
    RENAMED,
    SOURCE_CLOSED,
)

READY, STABILIZING, BUSY, SKIPPED = "ready", "stabilizing", "busy", "skipped"
FALLBACK_S = 2.0  # a file unchanged for so long is complete, where closes are not reported
#: The same for a file that a scan found and whose writers the kernel does not tell.
UNKNOWN_S = 10.0
#: The same if it changed while it was watched: its writer is on this machine, so its close will be
#: heard.
WRITTEN_S = 300.0

BUSY_WHY = "it is open for writing"
UNKNOWN_WHY = "it belongs to another user, so the kernel does not say who writes it"


def check_readiness(
    spec: FileSpec,
    bits: int,
    writers: Callable[[], bool | None],
    hears_closes: bool = False,
    waited: bool = False,
    changed: bool = False,
) -> tuple[str, float, str]:
    """Return (readiness, seconds, why).

    STABILIZING: ready when unchanged for these seconds. BUSY: check again, or wait for the close.
    SKIPPED: it came in a way that `ready` does not ask for.

    `writers` returns whether the file is open for writing; None: unknown. `hears_closes`: all
    writers are on this machine, and the watch reports their closes. `waited`: the file was
    unchanged for the seconds that were asked for; `changed`: it was not.
    """
    conditions = spec.required | spec.any
    if not conditions:
        return (READY, 0.0, "") if waited else _complete(spec, changed)
    enough = not spec.required & ~bits and (not spec.any or bool(spec.any & bits))
    inconclusive = bits & (FOUND | CHANGED | CREATED) or (spec.required == CLOSED | RENAMED and bits & RENAMED)
    if not enough and not inconclusive and not bits & RENAMED:
        return SKIPPED, 0.0, f"its writer closed it; ready asks for {spec.wants}"
    writing = writers()
    if writing:
        return BUSY, 0.0, BUSY_WHY
    if waited:
        return READY, 0.0, ""
    if not enough and not inconclusive:
        return SKIPPED, 0.0, f"it came by rename; ready asks for {spec.wants}"
    if writing is None and not (enough and (bits & (CLOSED | SOURCE_CLOSED) or not hears_closes)):
        return _unknown(spec, bits, hears_closes, changed)
    return _complete(spec, changed)


def _unknown(spec: FileSpec, bits: int, hears_closes: bool, changed: bool) -> tuple[str, float, str]:
    """Return the readiness of a file of which nobody says that it is complete."""
    if not hears_closes:
        seconds = max(spec.stable_s, FALLBACK_S)
        return STABILIZING, seconds, f"closes are not reported on its filesystem: {_unchanged(seconds)}"
    if changed:
        seconds = max(spec.stable_s, WRITTEN_S)
        return (
            STABILIZING,
            seconds,
            f"{UNKNOWN_WHY}, and it has changed: its close is awaited, or {_unchanged(seconds)}",
        )
    seconds = max(spec.stable_s, FALLBACK_S if bits & RENAMED else UNKNOWN_S)
    return STABILIZING, seconds, f"{UNKNOWN_WHY}: {_unchanged(seconds)}"


def _complete(spec: FileSpec, changed: bool) -> tuple[str, float, str]:
    if spec.stable_s:
        why = "it has changed meanwhile" if changed else _unchanged(spec.stable_s)
        return STABILIZING, spec.stable_s, why
    return READY, 0.0, ""


def _unchanged(seconds: float) -> str:
    return f"it must be unchanged for {seconds:g} s"


def cause(spec: FileSpec, bits: int, waited: bool) -> str:
    """Return the cause of the event: close_write, rename, stable, rescan or backfill."""
    if bits & BACKFILL:
        return "backfill"
    if waited and spec.stable_s:
        return "stable"
    if bits & CLOSED:
        return "close_write"
    if bits & (RENAMED | FOLDER_MOVED):
        return "rename"
    return "stable" if waited else "rescan"
