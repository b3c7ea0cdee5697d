"""Explains why a file fired or did not, from the ledger and the files in work.

Runs in the watcher's thread.
"""

from __future__ import annotations

import os
import stat

import msgspec

from oncue.triggers.base import ItemExplanation, Status
from oncue.triggers.file.evaluator import FileEvaluator
from oncue.triggers.file.ledger import EXISTING, FIRED, KnownFile, Ledger
from oncue.triggers.file.options import FileSpec
from oncue.triggers.file.pending_files import PendingFiles
from oncue.triggers.file.readiness import BUSY_WHY
from oncue.triggers.file.selection import folders_to, other_forms, read_selection
from oncue.triggers.file.stability import FileKey, fingerprint
from oncue.triggers.file.watch.base import ATTRIBUTES

NAME_MAX = 255  # bytes, on Linux and macOS
PATH_MAX = 4_096  # bytes, on Linux; macOS has less


def key_of(root: str, path: str) -> FileKey | None:
    """Return the key of a path; None: it is not below the watched folder.

    The path is absolute, or relative to the watched folder.
    """
    full = os.path.normpath(os.path.join(root, path))
    inside = full.startswith(root.rstrip("/") + "/")
    folder, _, name = full[len(root.rstrip("/")) + 1 :].rpartition("/")
    return (folder, name) if inside else None


def not_a_path(path: str) -> str | None:
    """Return why no file can have this path, or None."""
    if "\0" in path:
        return "no file's path has a NUL character"
    try:
        names = [len(name.encode()) for name in path.split("/")]
    except UnicodeEncodeError:
        return "no event can have this path: it is not UTF-8"
    if sum(names) + len(names) > PATH_MAX or max(names) > NAME_MAX:
        return f"no file has such a path: at most {NAME_MAX} bytes a name and {PATH_MAX} bytes in all"
    return None


def explain_file(
    path: str,
    spec: FileSpec,
    status: Status,
    ledger: Ledger,
    evaluator: FileEvaluator,
    pending_files: PendingFiles,
    rescan_s: float,
) -> ItemExplanation:
    """Return the state of this file and the reason. Raises sqlite3.Error, OSError."""
    if (impossible := not_a_path(path)) is not None:
        return ItemExplanation(path, "missing", impossible)
    key = key_of(os.fspath(spec.root), path)
    if key is None:
        return ItemExplanation(path, "not meant", f"it is not below the watched folder {spec.root}")
    key = _as_it_is(key, evaluator)
    relative = evaluator.relative(key)
    excluded = msgspec.structs.replace(read_selection(spec.selects), any_form=True).excludes(*key)
    if excluded:
        return ItemExplanation(relative, "not meant", excluded)
    if (link := _linked_folder(os.fspath(spec.root), key[0])) is not None:
        return ItemExplanation(relative, "not meant", f"{link} is a symbolic link to a folder, and is not followed")
    known = ledger.find([key]).get(key)
    if status.state == "failed":  # its folder may be another by now, which nobody may ask about
        return ItemExplanation(relative, "not seen", _when(known, spec, status, rescan_s))
    try:
        st = os.lstat(evaluator.path(key))
        if stat.S_ISLNK(st.st_mode) and not spec.links:
            return ItemExplanation(relative, "not meant", "it is a symbolic link (symlinks: ignore)")
        if stat.S_ISLNK(st.st_mode):
            st = os.stat(evaluator.path(key))
    except (FileNotFoundError, NotADirectoryError):
        was = f"; before it was removed, {_recorded(known, spec)}" if known is not None else ""
        return ItemExplanation(relative, "missing", f"there is no such file{was}", known.at_us if known else 0)
    if not stat.S_ISREG(st.st_mode):
        return ItemExplanation(relative, "not meant", "it is not a regular file")
    return _of_file(relative, key, st, known, spec, status, evaluator, pending_files, rescan_s)


def _as_it_is(key: FileKey, evaluator: FileEvaluator) -> FileKey:
    """Return the key in the Unicode form of the file on disk, if it exists."""
    forms = [(folder, name) for folder in (key[0], *other_forms(key[0])) for name in (key[1], *other_forms(key[1]))]
    return next((form for form in forms if os.path.lexists(evaluator.path(form))), key)


def _linked_folder(root: str, folder: str) -> str | None:
    """Return the first folder below the root that is a link; scans do not go there."""
    return next((path for path in folders_to(folder) if os.path.islink(os.path.join(root, path))), None)


def _of_file(
    relative: str,
    key: FileKey,
    st: os.stat_result,
    known: KnownFile | None,
    spec: FileSpec,
    status: Status,
    evaluator: FileEvaluator,
    pending_files: PendingFiles,
    rescan_s: float,
) -> ItemExplanation:
    seen = fingerprint(st)
    if evaluator.is_in_flight(key, seen, st.st_ctime_ns):
        trouble = f": {status.detail}" if status.detail else ""
        return ItemExplanation(relative, "fires", f"its event is being stored{trouble}")
    waiting = evaluator.stability.get(key)
    if waiting is not None and waiting.bits != ATTRIBUTES:
        why = ("it must be unchanged for a while" if waiting.still else BUSY_WHY) + f" (ready: {spec.wants})"
        return ItemExplanation(relative, "waits", why, waiting.at_us)
    if key in pending_files.noticed:
        return ItemExplanation(
            relative, "waits", "it was noticed and is evaluated next", pending_files.noticed[key].at_us
        )
    if known is not None and known.is_same(seen) and not (known.state == EXISTING and spec.existing):
        state = "fired" if known.state == FIRED else "old" if known.state == EXISTING else "passed over"
        return ItemExplanation(relative, state, _recorded(known, spec), known.at_us)
    if known is not None and known.state == FIRED and spec.never:
        return ItemExplanation(
            relative, "fired", "it has fired, and changes do not fire again (refire: never)", known.at_us
        )
    return ItemExplanation(relative, "not seen", _when(known, spec, status, rescan_s))


def _recorded(known: KnownFile, spec: FileSpec) -> str:
    if known.state == FIRED:
        return "it fired, and has not changed since"
    if known.state == EXISTING:
        return "it existed before the trigger (existing: false), and has not changed since"
    return f"it came in a way that ready does not ask for ({spec.wants}), or its event was refused"


def _when(known: KnownFile | None, spec: FileSpec, status: Status, rescan_s: float) -> str:
    """Return why it was not evaluated yet, and when it is going to be."""
    what = "it has changed since it was evaluated" if known is not None else "it was not noticed yet"
    if status.state == "looking":
        return f"{what}; the initial scan of the folder is running"
    if status.state != "running":
        return f"{what}; the trigger is {status.state}" + (f": {status.detail}" if status.detail else "")
    return f"{what}; the folder is scanned every {rescan_s:g} s"
