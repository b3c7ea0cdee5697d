"""Detect that a function has changed since it was packed.

A global variable may be set anew, a notebook's cell run again, a list changed in place: the next
submit then submits another function. Only a function that reaches something mutable is pickled
again to compare the bytes.
"""

from __future__ import annotations

import hashlib
from typing import Any

from oncue.pickles import Reach, dumps


class Watch:
    """State of a callable; make it right after packing."""

    def __init__(self, fn: Any) -> None:
        self._fn = fn
        self._reach = Reach(fn)
        self._pickled = b"" if self._reach.fixed else _hash(fn)

    def same(self) -> bool:
        """True if the callable is unchanged.

        Raises what pickling raises if something it reaches cannot be pickled any more.
        """
        return self._reach.same() and (not self._pickled or _hash(self._fn) == self._pickled)


def _hash(fn: Any) -> bytes:
    return hashlib.sha256(dumps(fn)[0]).digest()
