"""Is this file ready, by what was noticed of it? Pure but for the one question to the kernel, which is asked only where
the notices do not say enough."""

from __future__ import annotations

from collections.abc import Callable

from oncue.triggers.file.options import FileSpec
from oncue.triggers.file.watch.base import CHANGED, CLOSED, FOUND, RENAMED

READY, STABILIZING, BUSY, SKIPPED = "ready", "still", "busy", "passed"
FALLBACK_S = 2.0  # unchanged for so long counts as complete where nobody tells of closes

BUSY_WHY = "somebody has it open for writing"


def check_readiness(spec: FileSpec, bits: int, writers: Callable[[], bool | None]) -> tuple[str, float, str]:
    """(verdict, seconds, why). STABILIZING: ready when unchanged for these seconds. BUSY: look again, or wait for the close.
    SKIPPED: it came in a way that `ready` does not ask for.

    `writers` says whether somebody has it open for writing; None: unknown."""
    conditions = spec.required | spec.any
    enough = not spec.required & ~bits and (not spec.any or bool(spec.any & bits))
    if enough or not conditions:
        return _complete(spec)
    told_too_little = bits & (FOUND | CHANGED) or (spec.required == CLOSED | RENAMED and bits & RENAMED)
    if not told_too_little and not bits & RENAMED:
        return SKIPPED, 0.0, f"its writer closed it; ready asks for {spec.wants}"
    writing = writers()
    if writing:
        return BUSY, 0.0, BUSY_WHY
    if not told_too_little:
        return SKIPPED, 0.0, f"it came by rename; ready asks for {spec.wants}"
    if writing is None:
        seconds = max(spec.stable_s, FALLBACK_S)
        return STABILIZING, seconds, f"nobody tells whether it is complete: it has to be unchanged for {seconds:g} s"
    return _complete(spec)


def _complete(spec: FileSpec) -> tuple[str, float, str]:
    if spec.stable_s:
        return STABILIZING, spec.stable_s, f"it has to be unchanged for {spec.stable_s:g} s"
    return READY, 0.0, ""


def cause(bits: int, waited: bool) -> str:
    """What made it ready: close_write, rename, stable or rescan."""
    if waited:
        return "stable"
    return "close_write" if bits & CLOSED else "rename" if bits & RENAMED else "rescan"
