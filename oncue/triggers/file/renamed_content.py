"""RenamedContent: finds files that fired under another name (`refire: content`)."""

from __future__ import annotations

from oncue.clocks.process import now_us
from oncue.triggers.activity import ActivityLog
from oncue.triggers.file.evaluator import FileEvaluator, ReadyFile
from oncue.triggers.file.ledger import EXISTING, FIRED, FileRow, Ledger
from oncue.triggers.file.options import FileSpec
from oncue.triggers.file.stability import FileKey, Fingerprint


class RenamedContent:
    """Used in the watcher's thread only."""

    def __init__(self, spec: FileSpec, ledger: Ledger, evaluator: FileEvaluator, activity: ActivityLog) -> None:
        self.sent: dict[Fingerprint, FileKey] = {}  # of the files whose events are not durable yet
        self._spec, self._ledger, self._evaluator, self._activity = spec, ledger, evaluator, activity
        ledger.index_inodes()

    def fired(self, key: FileKey, ready: ReadyFile) -> bool:
        """Return True if the file fired, or existed, under another name; record it then."""
        st, seen, _, again = ready
        other, state = self.sent.get(seen, key), FIRED
        if other == key:
            found = self._ledger.same_content(seen, key)
            if found is None or again or not self._evaluator.born_before(key, found[1].at_us):
                return False
            other, state = found[0], found[1].state
        if state == EXISTING and self._spec.existing:
            return False
        self._evaluator.record_handled(FileRow(*key, state, *seen, now_us(), st.st_ctime_ns))
        where = "fired" if state == FIRED else "existed before the trigger"
        self._activity.record_skipped(
            self._evaluator.relative(key), f"it {where} as {self._evaluator.relative(other)} (refire: content)"
        )
        return True
