"""Regular expressions of rule files, in linear time and bounded memory."""

from __future__ import annotations

from typing import Any

from oncue.errors import Invalid
from oncue.globs import compiled_text

MAX_REGEX_CHARS = 1_000
REGEX_BYTES = 1024 * 1024  # of a compiled regex; RE2's 8 MB take 0.2 s to fill, without the GIL's release


def compile_regex(pattern: str) -> Any:
    """Compile a pattern. Raises Invalid."""
    import re2  # an endpoint does without it

    if len(pattern) > MAX_REGEX_CHARS:
        raise Invalid(f"the regex has {len(pattern)} characters", remedy=f"at most {MAX_REGEX_CHARS}")
    try:
        return compiled_text(pattern, REGEX_BYTES)
    except re2.error as e:
        reason = e.args[0].decode() if e.args and isinstance(e.args[0], bytes) else str(e)
        raise Invalid(
            f"the regex {pattern!r} cannot be used: {reason}",
            remedy="it is RE2 syntax: no backreferences, no lookaround",
        ) from None
