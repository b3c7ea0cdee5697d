"""TrialFile: rules whose evaluation is being tried, durably.

A mark is stored before an evaluation that may be dear, and removed after it. A mark that is found
at the start is of a rule during whose evaluation the server died: it is not tried again.
"""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

from oncue.disk.durable_files import replace_file

_log = logging.getLogger(__name__)


class TrialFile:
    """Marks by the rule's hash. `left`: those of a process that died."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._marks: dict[str, str] = {}
        self._writing = threading.Lock()
        self.left = self._read()

    def _read(self) -> dict[str, str]:
        try:
            found = json.loads(self._path.read_bytes())
            return {str(rule_hash): str(name) for rule_hash, name in found.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError) as e:  # a mark was being written
            _log.warning("%s cannot be read, and is ignored: %s", self._path, e)
            return {}

    def add(self, rule_hash: str, name: str) -> None:
        """Store a mark durably. Raises OSError."""
        with self._writing:
            self._marks[rule_hash] = name
            self._write(durable=True)

    def remove(self, rule_hash: str) -> None:
        """Remove a mark. Raises OSError."""
        with self._writing:
            self.left.pop(rule_hash, None)
            if self._marks.pop(rule_hash, None) is not None or not self.left:
                self._write(durable=False)

    def _write(self, *, durable: bool) -> None:
        marks = self.left | self._marks
        if not marks:
            self._path.unlink(missing_ok=True)
            return
        replace_file(self._path, json.dumps(marks).encode(), durable=durable)
