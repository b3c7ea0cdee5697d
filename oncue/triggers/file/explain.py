"""Why did this file fire, or not? Asked of the lookout, in whose thread it is answered from what it knows right now."""

from __future__ import annotations

import os
import stat
from itertools import accumulate

import msgspec

from oncue.triggers.base import Finding, Status
from oncue.triggers.file.evaluator import Sieve
from oncue.triggers.file.ledger import FIRED, KNOWN, Found, Ledger
from oncue.triggers.file.options import Spec, selection
from oncue.triggers.file.pending_files import Arrivals
from oncue.triggers.file.stability import Key, Print, fingerprint


def key_of(root: str, path: str) -> Key | None:
    """The key of a path, absolute or relative to the watched folder; None: it is not below that."""
    full = os.path.normpath(os.path.join(root, path))
    inside = full.startswith(root.rstrip("/") + "/")
    folder, _, name = full[len(root.rstrip("/")) + 1 :].rpartition("/")
    return (folder, name) if inside else None


def inquire(
    path: str, spec: Spec, status: Status, ledger: Ledger, sieve: Sieve, arrivals: Arrivals, rescan_s: float
) -> Finding:
    """Raises sqlite3.Error, OSError."""
    key = key_of(os.fspath(spec.root), path)
    if key is None:
        return Finding(path, "not meant", f"it is not below the watched folder {spec.root}")
    relative = sieve.relative(key)
    unwanted = not_meant(spec, key)
    if unwanted:
        return Finding(relative, "not meant", unwanted)
    known = ledger.find([key]).get(key)
    try:
        st = os.lstat(sieve.path(key))
        if stat.S_ISLNK(st.st_mode) and not spec.links:
            return Finding(relative, "not meant", "it is a symbolic link, which are not followed (symlinks: ignore)")
        if stat.S_ISLNK(st.st_mode):
            st = os.stat(sieve.path(key))
    except (FileNotFoundError, NotADirectoryError):
        was = f"; before that, {_remembered(known, spec)}" if known is not None else ""
        return Finding(relative, "missing", f"there is no such file now{was}", known.at_us if known else 0)
    if not stat.S_ISREG(st.st_mode):
        return Finding(relative, "not meant", "it is not a regular file")
    return _of_file(relative, key, fingerprint(st), known, spec, status, sieve, arrivals, rescan_s)


def _of_file(
    relative: str,
    key: Key,
    seen: Print,
    known: Found | None,
    spec: Spec,
    status: Status,
    sieve: Sieve,
    arrivals: Arrivals,
    rescan_s: float,
) -> Finding:
    if sieve.on_way.get(key) == seen:
        trouble = f": {status.detail}" if status.detail else ""
        return Finding(relative, "fires", f"its event is on the way to the log{trouble}")
    waiting = sieve.settling.get(key)
    if waiting is not None:
        why = (
            "it has to be unchanged for a while" if waiting.still else "somebody has it open for writing"
        ) + f" (ready: {spec.wants})"
        return Finding(relative, "waits", why, waiting.at_us)
    if key in arrivals.noticed:
        return Finding(relative, "waits", "it was noticed and is looked at next", arrivals.noticed[key].at_us)
    if known is not None and known.same(seen) and not (known.state == KNOWN and spec.existing):
        state = "fired" if known.state == FIRED else "old" if known.state == KNOWN else "passed over"
        return Finding(relative, state, _remembered(known, spec), known.at_us)
    if known is not None and known.state == FIRED and spec.never:
        return Finding(relative, "fired", "it has fired, and a change does not count (refire: never)", known.at_us)
    return Finding(relative, "not seen", _when(known, spec, status, rescan_s))


def _remembered(known: Found, spec: Spec) -> str:
    if known.state == FIRED:
        return "it fired, and is as it was then"
    if known.state == KNOWN:
        return "it was there before the trigger was (existing: false), and has not changed since"
    return f"it came in a way that ready does not ask for ({spec.wants}), or its event was refused"


def _when(known: Found | None, spec: Spec, status: Status, rescan_s: float) -> str:
    """When it is going to be looked at."""
    what = "it has changed since it was looked at" if known is not None else "nobody has told of it yet"
    if status.state == "looking":
        return f"{what}; the first look at the folder is under way"
    if status.state != "running":
        return f"{what}; the trigger is {status.state}" + (f": {status.detail}" if status.detail else "")
    return f"{what}; the folder is looked through every {rescan_s:g} s"


def not_meant(spec: Spec, key: Key) -> str:
    """Why the globs do not mean it; "": they do."""
    folder, name = key
    glob, ignore = msgspec.json.decode(spec.selects, type=tuple[str, tuple[str, ...]])
    above = list(accumulate(folder.split("/"), lambda a, b: f"{a}/{b}")) if folder else []
    for one in ignore:
        matches, enter = selection("**/*", (one,))
        if not matches(folder, name) or not all(map(enter, above)):
            return f"it is ignored (ignore: {one})"
    if not spec.matches(folder, name) or not all(map(spec.enter, above)):
        return f"the glob {glob} does not select it"
    return ""
