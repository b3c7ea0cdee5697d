"""Readiness of a file: decides from its notices whether it is complete.

Pure, except for one question to the kernel (is the file open for writing?), which is asked only
where the notices do not suffice.
"""

from __future__ import annotations

from collections.abc import Callable

from oncue.triggers.file.options import FileSpec
from oncue.triggers.file.watch.base import CHANGED, CLOSED, FOUND, RENAMED

READY, STABILIZING, BUSY, SKIPPED = "ready", "stabilizing", "busy", "skipped"
FALLBACK_S = 2.0  # a file unchanged for so long is complete, where closes are not reported

BUSY_WHY = "it is open for writing"


def check_readiness(spec: FileSpec, bits: int, writers: Callable[[], bool | None]) -> tuple[str, float, str]:
    """Return (readiness, seconds, why).

    STABILIZING: ready when unchanged for these seconds. BUSY: check again, or wait for the close.
    SKIPPED: it came in a way that `ready` does not ask for.

    `writers` returns whether the file is open for writing; None: unknown.
    """
    conditions = spec.required | spec.any
    enough = not spec.required & ~bits and (not spec.any or bool(spec.any & bits))
    if enough or not conditions:
        return _complete(spec)
    inconclusive = bits & (FOUND | CHANGED) or (spec.required == CLOSED | RENAMED and bits & RENAMED)
    if not inconclusive and not bits & RENAMED:
        return SKIPPED, 0.0, f"its writer closed it; ready asks for {spec.wants}"
    writing = writers()
    if writing:
        return BUSY, 0.0, BUSY_WHY
    if not inconclusive:
        return SKIPPED, 0.0, f"it came by rename; ready asks for {spec.wants}"
    if writing is None:
        seconds = max(spec.stable_s, FALLBACK_S)
        why = f"closes are not reported on its filesystem: it must be unchanged for {seconds:g} s"
        return STABILIZING, seconds, why
    return _complete(spec)


def _complete(spec: FileSpec) -> tuple[str, float, str]:
    if spec.stable_s:
        return STABILIZING, spec.stable_s, f"it must be unchanged for {spec.stable_s:g} s"
    return READY, 0.0, ""


def cause(bits: int, waited: bool) -> str:
    """Return the cause of the event: close_write, rename, stable or rescan."""
    if waited:
        return "stable"
    return "close_write" if bits & CLOSED else "rename" if bits & RENAMED else "rescan"
