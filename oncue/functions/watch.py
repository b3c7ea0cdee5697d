"""Detect that a function has changed since it was packed.

A global variable may be set anew, a notebook's cell run again, a list changed in place: the next
submit then submits another function. Only a function that reaches something mutable is pickled
again to compare the bytes.
"""

from __future__ import annotations

import hashlib
from typing import Any

from oncue.functions.options import files_state
from oncue.pickles import Reach, dumps


class Watch:
    """State of a callable.

    `fixed`: it reaches nothing mutable. Only then are the objects that it reaches kept alive.
    """

    def __init__(self, fn: Any) -> None:
        reach = Reach(fn)
        self.fixed = reach.fixed
        self._files = files_state(fn)
        self._reach = reach if reach.fixed else None
        self.content = b"" if reach.fixed else content_of(fn)

    def same(self, fn: Any) -> bool:
        """True if the callable, given again, is unchanged."""
        if self._files and files_state(fn) != self._files:
            return False
        return self._reach.same() if self._reach is not None else content_of(fn) == self.content


def content_of(fn: Any) -> bytes:
    """Return the hash of its pickle; b"" if it cannot be pickled."""
    try:
        return hashlib.sha256(dumps(fn)[0]).digest()
    except Exception:
        return b""
