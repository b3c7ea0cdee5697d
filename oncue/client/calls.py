"""Submit calls: register the function, pack the arguments, queue the task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from oncue.client.batch import BATCH_BYTES, BATCH_TASKS
from oncue.client.blobs import put_blob
from oncue.client.http import Http
from oncue.client.options import Options
from oncue.client.session import Session
from oncue.client.task import Task
from oncue.protocol import payload

Call = tuple[tuple[Any, ...], dict[str, Any]]  # args, kwargs
_PLAIN = frozenset((type(None), bool, int, float, str, bytes))
_encode = msgspec.msgpack.Encoder().encode


def submit_call(
    session: Session, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options
) -> Task[Any]:
    """Queue one call. Raises CannotPack, Invalid, Unreachable."""
    function, name = session.function(fn)
    content = _payload(session.http, args, kwargs)
    return Task(*session.sender.submit(session, function, name, options, content))


def submit_calls(session: Session, fn: Any, calls: Iterable[Call], options: Options) -> list[Task[Any]]:
    """Queue a call for each (args, kwargs), in batches while `calls` is read."""
    function, name = session.function(fn)
    tasks: list[Task[Any]] = []
    payloads: list[bytes] = []
    size = 0

    def send() -> None:
        batch = session.sender.submit_many(session, function, name, options, payloads)
        tasks.extend([Task(batch, i) for i in range(len(payloads))])

    for args, kwargs in calls:
        content = _payload(session.http, args, kwargs)
        payloads.append(content)
        size += len(content)
        if len(payloads) >= BATCH_TASKS or size >= BATCH_BYTES:
            send()
            payloads, size = [], 0
    if payloads:
        send()
    return tasks


def _payload(http: Http, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """Return the packed arguments, or a reference to the blob that holds them."""
    content = pack_call(args, kwargs)
    if payload.needs_blob(content):
        return payload.pack_ref(put_blob(http, content))
    return content


def pack_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """Pack arguments; as payload.pack_args, but faster for a few plain values."""
    if not kwargs:
        for arg in args:
            if type(arg) not in _PLAIN:
                break
        else:
            try:
                return payload.MSGPACK + _encode((args, kwargs))
            except (OverflowError, UnicodeEncodeError):  # an int over 64 bits, a lone surrogate
                pass
    return payload.pack_args(args, kwargs)
