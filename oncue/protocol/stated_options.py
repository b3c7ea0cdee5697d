"""Reader of run options as users state them: cores=4, memory="8GB"."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from oncue.errors import Invalid
from oncue.globs import glob_regex
from oncue.protocol.run_options import KEEP, KEY_CHARS, MOST_PATTERNS, SANDBOX, Resources, RunOptions
from oncue.quantities import duration_ms, size_bytes

RESOURCES = ("cores", "memory", "gpus", "nodes", "ranks", "walltime")
MOST = 1_000_000  # of cores, nodes and the like
PATTERN_CHARS = 1_000
_SANDBOXES = {False: 0, "": 0, True: SANDBOX, "keep": KEEP}


def run_options(
    resources: Mapping[str, Any] | None = None,
    sandbox: bool | str = False,
    outputs: Sequence[str] = (),
    affinity: str = "",
    *,
    in_cwd: bool = False,
) -> RunOptions | None:
    """Return run options; None if nothing is stated. Raises Invalid.

    Outputs are looked for in a sandbox, unless the task states its working directory (`in_cwd`).
    """
    patterns = checked_outputs(outputs)
    kind = checked_sandbox(sandbox) or (SANDBOX if patterns and not in_cwd else 0)
    found = RunOptions(checked_resources(resources or {}), kind, patterns, checked_affinity(affinity))
    return None if found == RunOptions() else found


def checked_sandbox(value: Any) -> int:
    """Return a sandbox as it is stored. Raises Invalid."""
    if not isinstance(value, bool | str) or value not in _SANDBOXES:
        raise Invalid(f"sandbox: {value!r} is not a choice", remedy='true, false, or "keep" to keep it on failure')
    return _SANDBOXES[value]


def checked_affinity(key: Any) -> str:
    """Return an affinity key. Raises Invalid."""
    if not isinstance(key, str) or len(key) > KEY_CHARS or (not key.isascii() and not _is_utf8(key)):
        raise Invalid(
            f"affinity: {str(key)[:60]!r} is not a text of at most {KEY_CHARS} characters",
            remedy="name what the tasks share, such as a sample or a detector",
        )
    return key


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def rendered_affinity(text: str) -> str:
    """Return the affinity key of a text of any length.

    A long one is cut, and keeps its hash.
    """
    if len(text) <= KEY_CHARS:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{text[: KEY_CHARS - len(digest) - 1]} {digest}"


def checked_outputs(patterns: Any) -> tuple[str, ...]:
    """Return globs of output files. Raises Invalid."""
    given = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(given, list | tuple) or not all(isinstance(p, str) and p for p in given):
        raise Invalid(f"outputs: {patterns!r} is not a list of globs", remedy='for example ["*.h5", "logs/**"]')
    if len(given) > MOST_PATTERNS:
        raise Invalid(f"outputs: {len(given)} globs; at most {MOST_PATTERNS}", remedy="use globs such as results/**")
    for pattern in given:
        try:
            glob_regex(pattern)
        except Invalid as e:
            raise Invalid(f"outputs: {e.message}", remedy=e.remedy) from None
        if pattern.startswith("/") or ".." in pattern.split("/") or "\0" in pattern or len(pattern) > PATTERN_CHARS:
            raise Invalid(
                f"outputs: {pattern[:60]!r} is not a glob below the task's folder", remedy="write it without / and .."
            )
    return tuple(given)


def checked_resources(given: Mapping[str, Any]) -> Resources:
    """Return resources as they are stored. Raises Invalid, with the nearest name."""
    if not isinstance(given, Mapping):
        raise Invalid(f"resources: {given!r} is not a mapping", remedy="for example {cores: 4, memory: 8GB}")
    found: dict[str, int] = {}
    for name, value in given.items():
        if name not in RESOURCES:
            near = get_close_matches(str(name), RESOURCES, 1)
            remedy = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(RESOURCES)}"
            raise Invalid(f"resources: there is no {name!r}", remedy=remedy)
        try:
            found[_STORED.get(name, name)] = _READ.get(name, _count)(value)
        except (ValueError, TypeError) as e:
            raise Invalid(
                f"resources: {name}: {e}", remedy='for example cores=4, memory="8GB", walltime="2h"'
            ) from None
    return Resources(**found)


def resources_request(resources: Resources | None) -> dict[str, int | float | str]:
    """Return resources as a request states them."""
    if resources is None:
        return {}
    given = {name: getattr(resources, _STORED.get(name, name)) for name in RESOURCES}
    return {name: f"{value}ms" if name == "walltime" else value for name, value in given.items() if value}


def _count(value: Any) -> int:
    if type(value) is not int or not 0 < value <= MOST:
        raise ValueError(f"{value!r} is not a whole number from 1 to {MOST:,}")
    return value


_STORED = {"memory": "memory_bytes", "walltime": "walltime_ms"}
_READ: dict[str, Callable[[Any], int]] = {"memory": size_bytes, "walltime": duration_ms}
