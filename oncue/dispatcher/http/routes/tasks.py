"""Routes of tasks: submit, show, wait, output and outcomes.

The batch is the hot path. No Python code here runs for each of its tasks; builtins in C do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from oncue import ids
from oncue.dispatcher.http.batch_body import BatchDecoder
from oncue.dispatcher.http.handler import answer
from oncue.dispatcher.http.route import JSON, MSGPACK, OCTETS, TEXT, RequestContext, Route
from oncue.dispatcher.http.schemas import (
    KEY_CHARS,
    LONGEST_MS,
    MAX_WAIT_MS,
    LogsQuery,
    OutcomeInfo,
    OutcomesQuery,
    OutcomesRequest,
    StreamQuery,
    TaskWaitQuery,
)
from oncue.dispatcher.http.streams import serve_stream
from oncue.dispatcher.off_loop import LARGE_BYTES, MANY, off_loop_if
from oncue.dispatcher.services.tasks import is_cut
from oncue.errors import Conflict, DiskFull, Invalid, NotFound, TooLarge, Undecodable
from oncue.protocol import payload
from oncue.protocol.api import (
    Accepted,
    BatchRequest,
    FailureInfo,
    Outcome,
    TaskInfo,
    TaskRequest,
    TimelineEntry,
)
from oncue.protocol.records import INLINE_BYTES, OK, Failure

MORE = "Oncue-More"  # of an answer that was cut: ask again for the others
NAME_CHARS = 1_000
IDS_BYTES = 4 << 20  # of a body with ids.MAX_BATCH ids


async def submit(context: RequestContext) -> TaskInfo:
    request: TaskRequest = context.body
    key = idempotency_key(context.request, request.key)
    if key != request.key or request.wait_ms > MAX_WAIT_MS:
        request = msgspec.structs.replace(request, key=key, wait_ms=min(request.wait_ms, MAX_WAIT_MS))
    _check_fields(request)
    return await context.backend.tasks.submit(context.caller, request)


async def submit_batch(context: RequestContext) -> Accepted:
    request: BatchRequest = context.body
    key = idempotency_key(context.request, request.key)
    if key != request.key:
        request = msgspec.structs.replace(request, key=key)
    if key:
        parse_id(key, "$.key", "a batch's key is a UUIDv7 in hex (32 digits)")
    check_batch(request, context.api.settings.max_batch)
    return await context.backend.tasks.submit_batch(context.caller, request)


def check_batch(request: BatchRequest, most: int) -> None:
    """Check counts, sizes and durations. Raises Invalid or TooLarge."""
    count = len(request.payloads) + len(request.calls)
    if not count or (request.payloads and request.calls):
        raise Invalid(
            f"the body: {'both `payloads` and `calls`' if count else 'neither `payloads` nor `calls`'}",
            remedy="give one of them: `payloads` (bytes) or `calls` ([args, kwargs] of JSON values)",
            path="$",
        )
    if count > min(most, ids.MAX_BATCH):
        most = min(most, ids.MAX_BATCH)
        raise TooLarge(
            f"a batch of {count:,} tasks is over the limit of {most:,}",
            remedy=f"send it in batches of at most {most:,}; 1,024 is a good size",
            limit=most,
            count=count,
        )
    if request.payloads:
        sizes = list(map(len, request.payloads))
        if max(sizes) > INLINE_BYTES:
            index = sizes.index(max(sizes))
            raise TooLarge(
                f"the payload at `$.payloads[{index}]` has {sizes[index]:,} bytes; {INLINE_BYTES:,} travel inline",
                remedy="PUT /v1/blobs/{sha256} first, then send a reference to it",
                limit_bytes=INLINE_BYTES,
                size_bytes=sizes[index],
            )
        if not min(sizes):
            raise Invalid(
                f"the payload at `$.payloads[{sizes.index(0)}]` is empty",
                remedy="a payload is one letter and then the content; see oncue.protocol.payload",
                path=f"$.payloads[{sizes.index(0)}]",
            )
    _check_fields(request)


def _check_fields(request: TaskRequest | BatchRequest) -> None:
    """Check durations, the number of retries, and lengths of names. Raises Invalid."""
    for name in ("function", "endpoint"):
        if len(getattr(request, name)) > NAME_CHARS:
            raise Invalid(f"the body: the name at `$.{name}` has over {NAME_CHARS:,} characters", path=f"$.{name}")
    check_ms(request, "wait_ms")
    for name in ("timeout_ms", "expires_ms"):
        if getattr(request, name) is not None:
            check_ms(request, name, least=1)
    if request.retry is not None:
        check_ms(request.retry, "max", "base_ms", "cap_ms", path="$.retry")
        if request.retry.max_age_ms is not None:
            check_ms(request.retry, "max_age_ms", path="$.retry", least=1)


def check_ms(of: Any, *names: str, path: str = "$", least: int = 0) -> None:
    """Check that these fields are between `least` and LONGEST_MS.

    Raises Invalid. `least` is 1 for optional limits.
    """
    for name in names:
        value = getattr(of, name, 0)
        if not least <= value <= LONGEST_MS:
            wrong = "too large" if value > 0 else "0" if value == 0 else "below 0"
            raise Invalid(
                f"the body: {name} is {wrong} - at `{path}.{name}`",
                remedy=f"give a number from {least} to {LONGEST_MS}"
                + (", or leave it out for no limit" if least else ""),
                path=f"{path}.{name}",
            )


def idempotency_key(request: web.Request, in_body: str) -> str:
    """Return the key of the body or of the header Idempotency-Key, without quotes.

    Raises Invalid.
    """
    header = request.headers.get("Idempotency-Key")
    if header is None:
        key = in_body
    else:
        key = header.strip()
        if len(key) >= 2 and key[0] == key[-1] == '"':
            key = key[1:-1]
        if in_body and in_body != key:
            raise Invalid("the header Idempotency-Key and the body's `key` differ", remedy="give one of them")
    if len(key) > KEY_CHARS:
        raise Invalid(f"the key has {len(key)} characters; at most {KEY_CHARS}", remedy="a UUID is enough")
    if header is not None and not (key.isascii() and key.isprintable()):
        raise Invalid("the header Idempotency-Key is not printable ASCII", remedy="a UUID is enough")
    return key


def parse_id(text: str, where: str, what: str = "a task's id has 32 hex digits") -> bytes:
    """Return an id that is given in hex. Raises Invalid."""
    with contextlib.suppress(ValueError):
        if text.isascii() and len(text) <= 40:
            return ids.parse(text)
    place = f" (at `{where}`)" if where.startswith("$") else ""
    raise Invalid(f"{text[:100]!r} is not an id{place}", remedy=what, path=where)


def task_id(context: RequestContext) -> str:
    """Return the path's id in its usual form. Raises Invalid."""
    return ids.text(parse_id(context.path("id"), "the path"))


async def show(context: RequestContext) -> TaskInfo:
    return await context.backend.tasks.get(
        context.caller, task_id(context), min(context.query.wait_ms, MAX_WAIT_MS), context.bearer
    )


async def timeline(context: RequestContext) -> list[TimelineEntry]:
    return await context.backend.tasks.timeline(context.caller, task_id(context))


async def logs(context: RequestContext) -> web.StreamResponse:
    source = context.backend.tasks.logs(context.caller, task_id(context), context.query.follow)
    response = web.StreamResponse(
        headers={"Content-Type": TEXT + "; charset=utf-8", "X-Content-Type-Options": "nosniff"}
    )
    return await serve_stream(context.stream(), response, source, bytes, grace_s=1.0)


async def outcomes(context: RequestContext) -> Any:
    body: OutcomesRequest | OutcomesQuery = context.body
    if isinstance(body, OutcomesQuery):
        _check_count(body.ids)
        wanted: Sequence[bytes] = body.ids
    else:
        wanted = await parse_ids(body.ids, "$.ids")
    found = await context.backend.tasks.outcomes(context.caller, wanted, min(body.wait_ms, MAX_WAIT_MS))
    if context.coding == MSGPACK:
        response = answer(found, coding=MSGPACK)
    else:
        large = sum(len(o.ended.value) for o in found) > LARGE_BYTES
        response = await off_loop_if(large, lambda: answer([shown(o) for o in found]))
    if is_cut([o.ended for o in found]):
        response.headers[MORE] = "true"
    return response


async def parse_ids(texts: Sequence[str], where: str) -> list[bytes]:
    """Return ids that are given in hex. Raises Invalid, TooLarge."""
    _check_count(texts)

    def parse() -> list[bytes]:
        return [parse_id(text, f"{where}[{i}]") for i, text in enumerate(texts)]

    return await off_loop_if(len(texts) > MANY, parse)


def _check_count(given: Sequence[object]) -> None:
    if len(given) > ids.MAX_BATCH:
        raise TooLarge(
            f"{len(given):,} ids are over the limit of {ids.MAX_BATCH:,}", remedy="send fewer", limit=ids.MAX_BATCH
        )


def shown(outcome: Outcome) -> OutcomeInfo:
    """Return an outcome for JSON. No pickle is loaded, so no code of a user runs."""
    e = outcome.ended
    value, plain, error = None, False, None
    try:
        if e.status == OK:
            plain, value = payload.peek(e.value)
        else:
            failure = msgspec.msgpack.decode(e.value, type=Failure)
            error = FailureInfo(
                type=failure.type, message=failure.message, traceback=failure.traceback, remedy=failure.remedy
            )
    except (msgspec.MsgspecError, Undecodable, ValueError, RecursionError):
        value = f"{len(e.value):,} bytes that cannot be read"
    return OutcomeInfo(
        id=ids.text(outcome.id),
        state=outcome.state,
        attempt=e.attempt,
        started_us=e.started_us,
        ended_us=e.ended_us,
        value=value,
        has_value=plain,
        error=error,
        output=e.output.decode("utf-8", "replace"),
    )


async def outcome_stream(context: RequestContext) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": OCTETS, "X-Content-Type-Options": "nosniff"})
    return await serve_stream(
        context.stream(), response, context.backend.tasks.stream(context.caller, context.query.stream), _framed
    )


def _framed(message: bytes) -> bytes:
    """Return length (4 bytes, big endian) and message.

    Length 0 keeps the connection alive.
    """
    return len(message).to_bytes(4, "big") + message


ACCEPT = (NotFound, Conflict, DiskFull)

ROUTES = (
    Route(
        "POST",
        "/v1/tasks",
        submit,
        summary="Run a function once. 202: the task is durable. With the header Idempotency-Key, again is the same task.",
        scope="user",
        max_bytes=16 * INLINE_BYTES,
        takes=TaskRequest,
        gives=TaskInfo,
        status=202,
        errors=ACCEPT,
    ),
    Route(
        "POST",
        "/v1/tasks/batch",
        submit_batch,
        summary="Run a function many times. 202: all tasks are durable, or none is. The answer is in the body's coding.",
        scope="user",
        takes=BatchRequest,
        decoder=BatchDecoder(),
        reads=(JSON, MSGPACK),
        gives=Accepted,
        writes=(JSON, MSGPACK),
        status=202,
        errors=ACCEPT,
    ),
    Route(
        "POST",
        "/v1/tasks/outcomes",
        outcomes,
        summary="How tasks closed: of the ids given, those that are closed; waits up to wait_ms for all of them.",
        scope="user",
        takes=OutcomesRequest,
        max_bytes=IDS_BYTES,
        takes_msgpack=OutcomesQuery,
        reads=(JSON, MSGPACK),
        gives=list[OutcomeInfo],
        gives_msgpack=list[Outcome],
        writes=(JSON, MSGPACK),
        waits=True,
    ),
    Route(
        "GET",
        "/v1/tasks/{id:(?!(?:batch|cancel|count|outcomes|retry)$)[^/]+}",  # those are paths of their own
        show,
        summary="One task.",
        scope="read",
        query=TaskWaitQuery,
        gives=TaskInfo,
        errors=(NotFound,),
        waits=True,
    ),
    Route(
        "GET",
        "/v1/tasks/{id}/timeline",
        timeline,
        summary="What happened to a task, in order.",
        scope="read",
        gives=list[TimelineEntry],
        errors=(NotFound,),
    ),
    Route(
        "GET",
        "/v1/tasks/{id}/logs",
        logs,
        summary="What a task printed, as text.",
        scope="read",
        query=LogsQuery,
        gives=str,
        writes=(TEXT,),
        streamed=True,
        errors=(NotFound,),
    ),
    Route(
        "GET",
        "/v1/outcomes",
        outcome_stream,
        summary="A stream of outcomes as they happen: for each message a length of 4 bytes (big endian) and a msgpack list "
        "of Outcome; length 0 is a sign of life. Read from the answer's headers on, no outcome of a task is missed.",
        scope="read",
        query=StreamQuery,
        gives=bytes,
        writes=(OCTETS,),
        streamed=True,
    ),
)
