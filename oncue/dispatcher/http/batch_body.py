"""Decodes the bodies of POST /v1/tasks/batch.

    payloads (msgpack)  one bytes object each: quick, in the loop up to 1 MiB
    calls               any values: beside the loop if large, and bounded before it begins

Calls of a large body become payloads here, beside the loop.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from oncue import ids
from oncue.dispatcher.http.body import BodyDecoder, check_json
from oncue.dispatcher.http.route import JSON
from oncue.dispatcher.off_loop import LARGE_BYTES, off_loop
from oncue.errors import Invalid, TooLarge
from oncue.protocol import payload
from oncue.protocol.api import BatchRequest, RetryPolicy
from oncue.protocol.api.base import Request
from oncue.protocol.text_keys import has_text_keys

PAYLOADS_BYTES = 1 << 20  # decoded in the loop: little more than a copy
CALLS_BYTES = 2 << 20  # of calls in msgpack
CONTAINERS = 131_072  # in them
# First bytes of maps and lists in msgpack; a text in ASCII has none of them.
_NO_CONTAINER = bytes(b for b in range(256) if not (0x80 <= b <= 0x9F or 0xDC <= b <= 0xDF))


class _Payloads(Request, frozen=True):
    """A BatchRequest without calls. Lengths are checked before items."""

    function: str
    endpoint: str = "local"
    key: str = ""
    payloads: Annotated[list[bytes], msgspec.Meta(max_length=ids.MAX_BATCH)] = msgspec.field(default_factory=list)
    calls: Annotated[list[bytes], msgspec.Meta(max_length=0)] = msgspec.field(default_factory=list)
    retry: RetryPolicy | None = None
    timeout_ms: int | None = None
    expires_ms: int | None = None
    stream: str = ""
    priority: str = "normal"


class BatchDecoder:
    """Decodes batches. See Decoder."""

    def __init__(self) -> None:
        self._plain = BodyDecoder(BatchRequest)
        self._payloads = msgspec.msgpack.Decoder(_Payloads)

    async def read(self, data: bytes, coding: str) -> BatchRequest:
        """Decode a batch. Raises Malformed, Invalid, TooLarge."""
        if coding != JSON and len(data) <= PAYLOADS_BYTES and (request := self._payloads_of(data)) is not None:
            return request
        if len(data) <= LARGE_BYTES:
            if coding != JSON:
                _check_keys(data)
            return _plain(self._plain.decode(data, coding))
        return await off_loop(self._decode_large, data, coding)

    def _payloads_of(self, data: bytes) -> BatchRequest | None:
        """Return the batch if it has payloads only. Raises TooLarge."""
        try:
            found = self._payloads.decode(data)
        except msgspec.ValidationError as e:
            if f"of length <= {ids.MAX_BATCH}" in str(e):
                raise TooLarge(
                    f"a batch of more than {ids.MAX_BATCH:,} tasks",
                    remedy="send it in several; 1,024 is a good size",
                    limit=ids.MAX_BATCH,
                ) from None
            return None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None  # _plain says what is wrong
        return BatchRequest(**{name: getattr(found, name) for name in _Payloads.__struct_fields__})

    def _decode_large(self, data: bytes, coding: str) -> BatchRequest:
        if coding == JSON:
            check_json(data)
        else:
            request = self._payloads_of(data)
            if request is not None:
                return request
            _check_calls(data)
            _check_keys(data)
        request = _plain(self._plain.decode(data, coding))
        if not request.calls or request.payloads:
            return request
        packed = [payload.pack_args(tuple(args), kwargs) for args, kwargs in request.calls]
        return msgspec.structs.replace(request, payloads=packed, calls=[])


def _plain(request: Any) -> BatchRequest:
    assert isinstance(request, BatchRequest)
    return request


def _check_calls(data: bytes) -> None:
    if len(data) > CALLS_BYTES or len(data.translate(None, _NO_CONTAINER)) > CONTAINERS:
        raise TooLarge(
            f"the `calls` have over {CALLS_BYTES:,} bytes, or over {CONTAINERS:,} lists and objects",
            remedy="send less at once: 1,024 calls are a good batch; or send `payloads`",
            limit_bytes=CALLS_BYTES,
        )


def _check_keys(data: bytes) -> None:
    if not has_text_keys(data):
        raise Invalid(
            "the body: a dict has keys that are no texts - at `$.calls`",
            remedy="give texts, or send `payloads`: oncue's Python client pickles such dicts",
            path="$.calls",
        )
