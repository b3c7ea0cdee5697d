"""RegisteredFunctions: the functions that a session has packed and registered.

Only functions that reach nothing mutable are known by identity, and kept alive. Others (bound
methods, partials, closures over objects) are known by the hash of their pickle, so that a client
keeps none of their objects alive.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from oncue.client.http import Http, register_function
from oncue.client.submission import BatchSender
from oncue.errors import Invalid, NotReady, RateLimited, Unreachable
from oncue.protocol.api import FunctionRequest, parameter_infos

if TYPE_CHECKING:
    from oncue.functions import Packed
    from oncue.functions.watch import Watch

KNOWN_FUNCTIONS = 1_024
NO_MODULES: frozenset[str] = frozenset()
K = TypeVar("K")
V = TypeVar("V")


class _Known(NamedTuple):
    id: str
    name: str
    modules: dict[str, int]  # the user's own modules that were sent for arguments, as in _own()


class _Latest(Generic[K, V]):
    """Dictionary of the KNOWN_FUNCTIONS latest entries."""

    def __init__(self) -> None:
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()
        self.get = self._entries.get

    def put(self, key: K, value: V) -> None:
        with self._lock:
            self._entries[key] = value
            while len(self._entries) > KNOWN_FUNCTIONS:
                self._entries.popitem(last=False)


class RegisteredFunctions:
    """Packs functions, registers each content once."""

    def __init__(self, http: Http, sender: BatchSender) -> None:
        self._http, self._sender = http, sender
        # By id(fn); each entry's reference to fn keeps its id unique.
        self._by_identity: _Latest[int, tuple[Any, Watch, _Known]] = _Latest()
        self._by_content: _Latest[bytes, _Known] = _Latest()
        self._is_own: dict[str, bool] = {}  # by module: a file of the user's, which is sent
        self._registered: set[str] = set()

    def find(self, fn: Any, modules: frozenset[str] = NO_MODULES) -> tuple[str, str]:
        """Return (hash or name for a request, display name); register a new function.

        `modules`: those that the pickles of arguments name. The user's own are sent with the
        function. Raises Invalid, CannotPack; Unreachable if there is no server yet.
        """
        if isinstance(fn, str):
            return fn, fn
        if not callable(fn) and hasattr(fn, "body"):  # a functions.Packed, from the command line
            return self.register(fn), str(fn.name)
        if not callable(fn):
            raise Invalid(
                f"a value of type {type(fn).__name__} cannot be run",
                remedy="give a function and its arguments, submit(f, x), or the name of a registered one",
            )
        own = self._own(modules) if modules else {}
        found = self._by_identity.get(id(fn))
        if found is not None and found[0] is fn and found[1].same(fn):
            known: _Known | None = found[2]
        else:
            from oncue.functions.watch import content_of  # imports much that an emit does not need

            known = self._by_content.get(content_of(fn))
        if known is None or not own.items() <= known.modules.items():
            known = self._pack(fn, own if known is None else known.modules | own)
        return known.id, known.name

    def _own(self, modules: frozenset[str]) -> dict[str, int]:
        """Return those that are files of the user's, with the files' times.

        A file that was edited, and its module loaded again, is sent again.
        """
        own: dict[str, int] = {}
        for name in modules:
            if name not in self._is_own:
                from oncue.functions.source import local_files  # imports much that an emit does not need

                self._is_own[name] = bool(local_files(name))
            if self._is_own[name]:
                try:
                    own[name] = os.stat(sys.modules[name].__file__ or "").st_mtime_ns
                except (OSError, KeyError, AttributeError):  # a folder without a file, or one that is gone
                    own[name] = 0
        return own

    def _pack(self, fn: Any, modules: dict[str, int]) -> _Known:
        from oncue.functions import pack_function
        from oncue.functions.watch import Watch

        watch = Watch(fn)  # before packing: a change in between is then seen next time
        packed = pack_function(fn, modules=modules)
        self._register_or_defer(packed)
        known = _Known(packed.id, packed.name, modules)
        if watch.fixed:
            self._by_identity.put(id(fn), (fn, watch, known))
        else:
            self._by_content.put(watch.content, known)
        return known

    def register(self, packed: Packed) -> str:
        """Register a packed function; return its hash. Raises Unreachable, TooLarge."""
        if packed.id not in self._registered:
            register_function(self._http, _request(packed))
            self._registered.add(packed.id)
        return packed.id

    def _register_or_defer(self, packed: Packed) -> None:
        """Register it; while the server is away, leave that to the sender.

        The sender registers it before the first batch that needs it. Raises Unreachable if this
        session has not reached a server yet.
        """
        try:
            self.register(packed)
        except (Unreachable, NotReady, RateLimited):
            if not self._sender.can_queue:
                raise
            self._sender.unregistered[packed.id] = _request(packed)


def _request(packed: Packed) -> FunctionRequest:
    return FunctionRequest(
        name=packed.name,
        body=packed.body,
        signature=packed.signature,
        doc=packed.doc,
        file=packed.file,
        parameters=parameter_infos(packed.parameters),
    )
