"""Unpickle values. **Runs code.**

A class whose id this process already has is reused unchanged: the pickle's content for it is
ignored. Otherwise a result could change its author's class, or a task's argument the class that
other tasks use. In the user's own program (`at_home`), a class of `__main__` is also found by its
name, because it may come from another process of the same script.

    ClassUnpickler ─► _class ─► known? ─ yes ─► reused, its _fill does nothing
                          └──── no ──► cloudpickle makes it, its _fill fills it
"""

from __future__ import annotations

import io
import pickle
import sys
import threading
from collections.abc import Iterable
from typing import Any

from cloudpickle import cloudpickle as cp

from oncue.pickles import homes
from oncue.pickles.pickler import content_id

_OURS = {"_make_skeleton_class": "_class", "_make_skeleton_enum": "_enum", "_class_setstate": "_fill"}
_SKELETON = b"_make_skeleton_"  # in a pickle with classes by value
_SMALL_BYTES = 64 << 10  # up to this size, a search for _SKELETON costs less than a ClassUnpickler

#: Held by a reader from its first class by value until its end: no other reader may see a class
#: that is not filled yet.
_making = threading.RLock()


class ClassUnpickler(pickle.Unpickler):
    """Unpickler that reuses known classes."""

    def __init__(self, file: io.BytesIO, at_home: bool, buffers: Iterable[Any] | None) -> None:
        super().__init__(file, buffers=buffers)
        self._at_home = at_home
        self._holds = False
        self._known: dict[int, type] = {}
        self._incomplete: dict[int, tuple[type, str]] = {}  # made here and not filled yet

    def read(self) -> Any:
        """Return the value. Raises OtherPython, Undecodable and unpickling errors."""
        try:
            return self.load()
        finally:
            for _, key in self._incomplete.values():  # no reader may use them
                cp._DYNAMIC_CLASS_TRACKER_BY_ID.pop(key, None)
            if self._holds:
                _making.release()

    def find_class(self, module: str, name: str) -> Any:
        if module == cp.__name__ and name in _OURS:
            return getattr(self, _OURS[name])
        return super().find_class(module, name)

    def _class(self, kind: Any, name: str, bases: Any, given: dict[str, Any], key: str, extra: Any) -> type:
        qualname = (extra or {}).get("qualname", name)
        found = self._find(key, given.get("__module__", ""), qualname)
        if found is not None:
            return found
        made = cp._make_skeleton_class(kind, name, bases, given, key, extra)
        made.__qualname__ = qualname
        return self._made(made, key)

    def _enum(self, bases: Any, name: str, qualname: str, members: Any, module: str, key: str, extra: Any) -> type:
        found = self._find(key, module, qualname)
        if found is not None:
            return found
        return self._made(cp._make_skeleton_enum(bases, name, qualname, members, module, key, extra), key)

    def _find(self, key: str, module: str, qualname: str) -> type | None:
        if not self._holds:
            _making.acquire()
            self._holds = True
        found: type | None = cp._DYNAMIC_CLASS_TRACKER_BY_ID.get(key)
        if self._at_home and module == "__main__":
            own = homes.named(sys.modules.get("__main__"), qualname)
            # If both exist and differ, the cell or script has changed since the class was sent.
            if isinstance(own, type) and own is not found and (found is None or _content(own) == key):
                found = own
        if found is not None:
            self._known[id(found)] = found
        return found

    def _made(self, made: type, key: str) -> type:
        self._incomplete[id(made)] = made, key
        return made

    def _fill(self, cls: type, state: Any) -> type:
        if id(cls) not in self._known:
            cp._class_setstate(cls, state)
            self._incomplete.pop(id(cls), None)
        return cls


def _content(cls: type) -> str:
    try:
        return content_id(cls)
    except Exception:  # it reaches something that cannot be pickled
        return ""


def loads(data: bytes, start: int = 0, *, at_home: bool = False, buffers: Iterable[Any] | None = None) -> Any:
    """Return the value whose pickle begins at `start`.

    `buffers`: in the order in which they were taken out of the pickle. Raises OtherPython,
    Undecodable, and what unpickling raises.
    """
    if len(data) < _SMALL_BYTES and _SKELETON not in data:
        return pickle.loads(memoryview(data)[start:], buffers=buffers)
    file = io.BytesIO(data)  # shares the bytes
    file.seek(start)
    return ClassUnpickler(file, at_home, buffers).read()
