"""Session: state that a client's parts share.

It owns the HTTP connections, the threads, the trusted endpoints and the registered functions.
Client, BoundClient, Batch, Task and the resources hold the session, and it holds none of them, so
that `Client().submit(f).result()` and `Client().tasks.list()` work. It closes when it is forgotten
or the program ends. The threads hold a batch, and so its session, only while a task of it is open.
"""

from __future__ import annotations

import functools
import os
import time
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict, Unpack

import msgspec

from oncue.client.blobs import fetch_blob
from oncue.client.discovery import find_server
from oncue.client.functions import RegisteredFunctions
from oncue.client.http import Http, Target, in_path
from oncue.client.outcomes import OutcomeReceiver
from oncue.client.submission import BatchSender
from oncue.client.unaccepted import exit_with
from oncue.config import default_data
from oncue.errors import Forbidden, NotFound, OncueError
from oncue.protocol.api import EndpointInfo
from oncue.protocol.payload import Ref

PATIENCE_S = 60.0  # for which a server may be away
LINGER_S = 30.0  # for which closing waits for a server that accepts nothing
UNSEEN_S = 5.0  # pause between requests for an endpoint that the caller may not see


class Session:
    """Connections, threads, trust and registered functions of one client."""

    def __init__(self, target: Target, patience_s: float, linger_s: float, trust: Iterable[str] = ()) -> None:
        self.http = http = Http(target)
        self.outcomes = outcomes = OutcomeReceiver(http, patience_s)
        self.sender = sender = BatchSender(http, outcomes, linger_s)
        self._trust = set(trust)
        self._owned: dict[str, bool] = {}  # by an endpoint's name or id
        self._unseen_s: dict[str, float] = {}  # when such a one was not to be seen: it may be registered yet
        self.functions = RegisteredFunctions(http, sender)
        self._finalize = weakref.finalize(self, _close_forgotten, sender)

    def close(self, flush: bool) -> None:
        """Flush, then close. Idempotent. Raises as BatchSender.close() does."""
        self._finalize.detach()
        self.sender.close(flush)

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
            if not key or time.monotonic() - self._unseen_s.get(key, -UNSEEN_S) < UNSEEN_S:
                return False
            try:
                owned = self._owned[key] = self._endpoint_owner(key) == self.sender.me().subject
            except (NotFound, Forbidden):
                self._unseen_s[key] = time.monotonic()
                return False
        return owned

    def _endpoint_owner(self, key: str) -> str:
        answer = self.http.request("GET", f"/v1/endpoints/{in_path(key)}")
        return msgspec.json.decode(answer.body, type=EndpointInfo).owner


class ClientOptions(TypedDict, total=False):
    """Options of a client; see Client."""

    data: str | os.PathLike[str]
    trust: Iterable[str]
    patience: float
    linger: float


def open_session(url: str = "", token: str = "", **options: Unpack[ClientOptions]) -> Session:
    """Return the session of a client with these arguments."""
    data = options.get("data", "")
    target = functools.partial(find_server, url, token, Path(data) if data else default_data())
    return Session(
        target, options.get("patience", PATIENCE_S), options.get("linger", LINGER_S), options.get("trust", ())
    )


def _close_forgotten(sender: BatchSender) -> None:
    """Close an unreferenced session, or at exit; report unaccepted tasks."""
    try:
        sender.close(flush=True)
    except (OncueError, KeyboardInterrupt) as e:
        error = e if isinstance(e, OncueError) else sender.unaccepted.drain()
        if error is not None:
            exit_with(error)
