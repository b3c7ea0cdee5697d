"""Session: state that a client's parts share.

It owns the HTTP connections, the threads, the trusted endpoints and the registered functions.
Client, BoundClient, Batch, Task and the resources hold the session, and it holds none of them, so
that `Client().submit(f).result()` and `Client().tasks.list()` work. It closes when it is forgotten
or the program ends. The threads hold a batch, and so its session, only while a task of it is open.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from oncue.client.blobs import fetch_blob
from oncue.client.discovery import find_server
from oncue.client.http import Http, Target, register_function
from oncue.client.outcomes import OutcomeReceiver
from oncue.client.submission import BatchSender
from oncue.client.unaccepted import exit_with
from oncue.config import default_data
from oncue.errors import Forbidden, Invalid, NotFound, NotReady, OncueError, RateLimited, Unreachable
from oncue.protocol.api import EndpointInfo, FunctionRequest, parameter_infos
from oncue.protocol.payload import Ref

if TYPE_CHECKING:
    from oncue.functions import Packed, Watch

KNOWN_FUNCTIONS = 1_024


class Session:
    """Connections, threads, trust and registered functions of one client."""

    def __init__(self, target: Target, patience_s: float, linger_s: float, trust: Iterable[str] = ()) -> None:
        self.http = http = Http(target)
        self.outcomes = outcomes = OutcomeReceiver(http, patience_s)
        self.sender = sender = BatchSender(http, outcomes, linger_s)
        self._trust = set(trust)
        self._owned: dict[str, bool] = {}  # by an endpoint's name or id
        # By id(fn): fn, hash, name; each entry's reference to fn keeps its id unique.
        self._functions: OrderedDict[int, tuple[Any, str, str, Watch]] = OrderedDict()
        self._registered: set[str] = set()
        self._lock = threading.Lock()
        self._finalize = weakref.finalize(self, _close_forgotten, sender)

    def close(self, flush: bool) -> None:
        """Flush, then close. Idempotent. Raises as BatchSender.close() does."""
        self._finalize.detach()
        self.sender.close(flush)

    # ------------------------------------------------------------ functions

    def function(self, fn: Any) -> tuple[str, str]:
        """Return (hash or name for a request, display name); register a new function.

        Raises Invalid, CannotPack; Unreachable if there is no server yet.
        """
        if isinstance(fn, str):
            return fn, fn
        if not callable(fn) and hasattr(fn, "body"):  # a functions.Packed, from the command line
            return self.register(fn), str(fn.name)
        known = self._functions.get(id(fn))
        if known is not None and known[0] is fn and known[3].same():
            return known[1], known[2]
        if not callable(fn):
            raise Invalid(
                f"a {type(fn).__name__} cannot be run", remedy="give a function, or the name of a registered one"
            )
        from oncue.functions import Watch, pack_function  # imports much that an emit does not need

        packed, watch = pack_function(fn), Watch(fn)
        self._register_or_defer(packed)
        with self._lock:
            self._functions[id(fn)] = (fn, packed.id, packed.name, watch)
            while len(self._functions) > KNOWN_FUNCTIONS:
                self._functions.popitem(last=False)
        return packed.id, packed.name

    def register(self, packed: Packed) -> str:
        """Register a packed function; return its hash. Raises Unreachable, TooLarge."""
        if packed.id not in self._registered:
            register_function(self.http, _request(packed))
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
            if not self.sender.can_queue:
                raise
            self.sender.unregistered[packed.id] = _request(packed)

    # ------------------------------------------------------------ results

    def fetch(self, ref: Ref) -> bytes:
        """Return a large value's bytes. Raises BlobMissing if it is gone or corrupt."""
        return fetch_blob(self.http, ref)

    def trusts(self, endpoint: str, endpoint_id: str | None = None) -> bool:
        """True if pickles of this endpoint may be loaded.

        They may if it is yours, or named in `trust`. Its owner is looked up by the id where that is
        known: other people's endpoints may have the same name.
        """
        if endpoint in self._trust:
            return True
        key = endpoint if endpoint_id is None else endpoint_id
        owned = self._owned.get(key)
        if owned is None:
            if not key:
                return False
            try:
                owned = self._owned[key] = self._endpoint_owner(key) == self.sender.me().subject
            except (NotFound, Forbidden):
                return False
        return owned

    def _endpoint_owner(self, key: str) -> str:
        path = f"/v1/endpoints/{quote(key, safe='', errors='surrogateescape')}"
        return msgspec.json.decode(self.http.request("GET", path).body, type=EndpointInfo).owner


def open_session(
    url: str = "",
    token: str = "",
    *,
    data: str | os.PathLike[str] = "",
    trust: Iterable[str] = (),
    patience: float = 60.0,
    linger: float = 30.0,
) -> Session:
    """Return the session of a client with these arguments; see Client."""
    folder = Path(data) if data else default_data()
    return Session(functools.partial(find_server, url, token, folder), patience, linger, trust)


def _request(packed: Packed) -> FunctionRequest:
    return FunctionRequest(
        name=packed.name,
        body=packed.body,
        signature=packed.signature,
        doc=packed.doc,
        file=packed.file,
        parameters=parameter_infos(packed.parameters),
    )


def _close_forgotten(sender: BatchSender) -> None:
    """Close an unreferenced session, or at exit; report unaccepted tasks."""
    try:
        sender.close(flush=True)
    except (OncueError, KeyboardInterrupt) as e:
        error = e if isinstance(e, OncueError) else sender.unaccepted.drain()
        if error is not None:
            exit_with(error)
