"""Open files: a pickle of one would be a copy of its content, or nothing.

cloudpickle makes a StringIO of an open text file, at its position. The function would read other
data than its author meant, and write to nowhere.
"""

from __future__ import annotations

import io
import sys
from typing import Any

_IN_MEMORY = (io.BytesIO, io.StringIO)
_OF_PYTHON = ("io", "_io", "_pyio", "builtins")
_OWN_PICKLING = ("__reduce__", "__reduce_ex__", "__getstate__")
_STANDARD = ("stdout", "stderr")


class OpenFile(TypeError):
    """Refusal to pickle an open file."""


def is_open_file(value: Any) -> bool:
    """Return True for a file object whose class does not say how it is pickled."""
    if not isinstance(value, io.IOBase) or isinstance(value, _IN_MEMORY):
        return False
    own = [cls for cls in type(value).__mro__ if cls.__module__ not in _OF_PYTHON]
    return not any(name in vars(cls) for cls in own for name in _OWN_PICKLING)


def reduced(file: Any) -> Any:
    """Return the reduced value of a standard stream: that of the reader's process.

    Raises OpenFile for others.
    """
    for name in _STANDARD:
        if file is getattr(sys, name):
            return getattr, (sys, name)
    raise OpenFile("an open file cannot be pickled")
