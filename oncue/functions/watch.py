"""Whether a function is still what it was when it was packed.

A global variable may be set anew, a notebook's cell run again, a list changed in place: what is submitted then is another
function. Only where it reaches something that can change in place, it is pickled again and the bytes compared.
"""

from __future__ import annotations

import hashlib
from typing import Any

from oncue.pickles import Reach, dumps


class Watch:
    """To be made of a callable right after it was packed."""

    def __init__(self, fn: Any) -> None:
        self._fn = fn
        self._reach = Reach(fn)
        self._pickled = b"" if self._reach.fixed else _hash(fn)

    def same(self) -> bool:
        """Raises what pickling raises, where something that is reached cannot be pickled any more."""
        return self._reach.same() and (not self._pickled or _hash(self._fn) == self._pickled)


def _hash(fn: Any) -> bytes:
    return hashlib.sha256(dumps(fn)[0]).digest()
