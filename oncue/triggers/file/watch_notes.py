"""Notes on what a watch cannot do here, for the trigger's status."""

from __future__ import annotations

from oncue.triggers.file.scanner import Scanner
from oncue.triggers.file.watch import scan_only
from oncue.triggers.file.watch.base import FolderWatch
from oncue.triggers.file.watch.scan_only import ScanOnlyWatch


def watch_notes(network: str, watch: FolderWatch | None, scanner: Scanner) -> list[str]:
    """Return what the user should know.

    `network`: type of the network mount, if there is one.
    """
    notes = []
    if network:
        notes.append(
            f"on a network mount ({network}): files that other machines write are found by a scan"
            f" every {scanner.rescan_s:g} s, and are ready when unchanged for a while"
        )
    if isinstance(watch, ScanOnlyWatch):
        notes.append(
            f"the folder is not watched, only scanned every {scanner.rescan_s:g} s: {watch.why}; a watch"
            f" is tried every {scan_only.WATCH_AGAIN_S:g} s"
        )
    elif watch is not None and not watch.reports_closes:
        notes.append(
            "this system does not report when a writer closes a file: files are ready when unchanged for a while"
        )
    if scanner.unwatched:
        notes.append(
            f"{scanner.unwatched} folders are not watched, only scanned every {scanner.rescan_s:g} s:"
            " raise the kernel's fs.inotify.max_user_watches"
        )
    return notes
