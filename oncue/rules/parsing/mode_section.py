"""Parses `mode` and `resume` of a rule."""

from __future__ import annotations

from oncue.rules.limiters.base import one_of
from oncue.rules.limiters.pause import MODES, RESUMES, PauseLimiter, pause_limiter
from oncue.strict_yaml.document import Node, Problems


def parse_mode(mode: Node | None, resume: Node | None, problems: Problems) -> tuple[str, tuple[PauseLimiter, ...]]:
    """Return the mode, and the limiter of a rule that is paused."""
    found = one_of(mode, "mode", MODES, problems)
    how = one_of(resume, "resume", RESUMES, problems)
    if resume is not None and found != "paused":
        problems.add(resume, "`resume` is of `mode: paused`", "leave it out, or pause the rule")
    return found, (pause_limiter(how == "latest"),) if found == "paused" else ()
