"""Submit calls: register the function, pack the arguments, queue the task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from oncue.client.batch import BATCH_BYTES, BATCH_TASKS
from oncue.client.blobs import send_apart
from oncue.client.functions import NO_MODULES
from oncue.client.http import Http
from oncue.client.options import Options
from oncue.client.session import Session
from oncue.client.task import Task
from oncue.pickles import ObjectRef
from oncue.protocol import payload
from oncue.protocol.buffers import LEAST_BYTES

Call = tuple[tuple[Any, ...], dict[str, Any]]  # args, kwargs
_FIXED, _SIZED = frozenset((type(None), bool, int, float)), frozenset((str, bytes))
_encode = msgspec.msgpack.Encoder().encode


def submit_call(
    session: Session, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options
) -> Task[Any]:
    """Queue one call. Raises CannotPack, Invalid, Unreachable."""
    content, modules = _payload(session.http, args, kwargs)
    function, name = session.functions.find(fn, modules)
    return Task(*session.sender.submit(session, function, name, options, content))


def submit_calls(session: Session, fn: Any, calls: Iterable[Call], options: Options) -> list[Task[Any]]:
    """Queue a call for each (args, kwargs), in batches while `calls` is read."""
    function, name = session.functions.find(fn)
    tasks: list[Task[Any]] = []
    payloads: list[bytes] = []
    needed: frozenset[str] = NO_MODULES  # modules of the arguments
    size = 0

    def send() -> None:
        nonlocal function, name
        if needed:
            function, name = session.functions.find(fn, needed)
        batch = session.sender.submit_many(session, function, name, options, payloads)
        tasks.extend([Task(batch, i) for i in range(len(payloads))])

    for args, kwargs in calls:
        content, modules = _payload(session.http, args, kwargs)
        if not modules <= needed:
            needed |= modules
        payloads.append(content)
        size += len(content)
        if len(payloads) >= BATCH_TASKS or size >= BATCH_BYTES:
            send()
            payloads, size = [], 0
    if payloads:
        send()
    return tasks


def _payload(http: Http, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, frozenset[str]]:
    """Return (packed arguments, or a reference to their blobs; their modules)."""
    content = _pack_plain(args) if not kwargs else None
    if content is not None:
        return content, NO_MODULES
    packed = payload.pack_args_apart(args, kwargs)
    return send_apart(http, packed), packed.modules


def _pack_plain(args: tuple[Any, ...]) -> bytes | None:
    """Pack a few small plain values; None for others.

    It is faster than payload.pack_args_apart.
    """
    for arg in args:
        if type(arg) not in _FIXED and not (type(arg) in _SIZED and len(arg) < LEAST_BYTES):
            return None
    try:
        content = payload.MSGPACK + _encode((args, {}))
    except (OverflowError, UnicodeEncodeError):  # an int over 64 bits, a lone surrogate
        return None
    return None if payload.needs_blob(content) else content


def put_object(http: Http, value: Any) -> ObjectRef[Any]:
    """Store a value in the blob store. Raises CannotPack, Unreachable, DiskFull."""
    stored = payload.pack_apart(value)
    packed = send_apart(http, stored)
    size = len(stored.body) + sum(buffer.size_bytes for buffer in stored.buffers)
    return ObjectRef(packed, size, type(value).__name__, stored.modules)
