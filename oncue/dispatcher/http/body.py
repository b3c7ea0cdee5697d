"""Reads and decodes request bodies and queries.

Errors name the place in the input and a remedy.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NoReturn, Protocol

import msgspec
import msgspec.inspect as mi
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from oncue.dispatcher.http.connection import BodyTimeout
from oncue.dispatcher.http.content_coding import content_coding, decompress
from oncue.dispatcher.http.route import JSON, MSGPACK, Route
from oncue.dispatcher.off_loop import LARGE_BYTES, off_loop
from oncue.errors import Invalid, Malformed, RequestTimeout, TooLarge, UnsupportedType
from oncue.protocol.json_numbers import TEXT, check_numbers, float_of

_ALIASES = {"application/x-msgpack": MSGPACK, "application/vnd.msgpack": MSGPACK}
_UNKNOWN = re.compile(r"unknown field `(?P<field>[^`]*)`(?: - at `(?P<path>[^`]*)`)?")
_AT = re.compile(r" - at `(?:key in )?(?P<path>\$[^`]*)`")


def coding_of(request: web.Request, route: Route) -> str:
    """Return the content type of the body.

    Without a header it is the route's first. Raises UnsupportedType.
    """
    header = request.headers.get("Content-Type")
    if header is None or header in route.reads:
        return header or route.reads[0]
    kind, _, parameters = header.partition(";")
    kind = kind.strip().lower()
    kind = _ALIASES.get(kind, kind)
    if kind not in route.reads:
        raise UnsupportedType(
            f"this does not take {kind or 'an empty content type'}",
            remedy=f"send it as {' or '.join(route.reads)}, and say so in the header Content-Type",
            takes=list(route.reads),
        )
    charset = re.search(r'charset\s*=\s*"?([^";\s]+)', parameters, re.IGNORECASE)
    if charset and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedType(f"the body is in {charset[1]}", remedy="send it in UTF-8", takes=list(route.reads))
    return kind


async def read_body(request: web.Request, limit: int, fixed: bool = False) -> bytes:
    """Return the whole body, without its content coding.

    `fixed`: the limit is the route's own, not the server's setting.

    Raises TooLarge, before reading if Content-Length exceeds the limit, UnsupportedType, Malformed
    and RequestTimeout.
    """
    length = request.content_length
    if length is not None and length > limit:
        raise too_large(length, limit, fixed)
    coding = content_coding(request)
    body = await _read(request, limit, fixed)
    if not coding or not body:
        return body
    decoded = await off_loop(decompress, body, coding, limit)
    if decoded is None:
        raise too_large(limit + 1, limit, fixed)
    return decoded


async def _read(request: web.Request, limit: int, fixed: bool) -> bytes:
    content = request.content
    try:
        first = await content.readany()
        if not first or content.is_eof():
            if len(first) > limit:
                raise too_large(len(first), limit, fixed)
            return first
        parts, size = [first], len(first)
        while size <= limit:
            part = await content.readany()
            if not part:
                # The join of large parts runs without the interpreter's lock.
                return b"".join(parts) if size <= LARGE_BYTES else await off_loop(b"".join, parts)
            parts.append(part)
            size += len(part)
    except BodyTimeout as e:
        raise RequestTimeout(str(e), remedy="send it at once, or over a better line") from None
    except (HttpProcessingError, web.RequestPayloadError) as e:
        raise Malformed(
            f"the body cannot be read: {e or type(e).__name__}",
            remedy="check Content-Length and Transfer-Encoding",
        ) from None
    raise too_large(size, limit, fixed)


def too_large(size: int, limit: int, fixed: bool = False) -> TooLarge:
    """Return the error for a body of more than `limit` bytes."""
    return TooLarge(
        f"the body is over the limit of {limit:,} bytes",
        remedy="send where the data is, not the data; here the limit is fixed, no setting raises it"
        if fixed
        else "send less at once; large arguments go to the blob store first (PUT /v1/blobs/{sha256}). "
        "The server's limit is its setting max_body_bytes",
        limit_bytes=limit,
        size_bytes=size,
    )


ERROR_CHARS = 1_000
VALUES = 262_144  # in one JSON body: they are decoded in some 50 ms, during which nothing else runs
QUOTES, ESCAPES = 40_000, 400_000  # a body with more is not searched for texts: that would take over 30 ms


def check_json(data: bytes) -> None:
    """Check that a JSON body is decoded in a short time. Raises TooLarge.

    Each value but the first follows a comma or a bracket. Those in texts count too, unless the
    texts are few and long, such as rule files. Route.json_bytes limits the size.
    """
    if _values(data) > VALUES and (_is_intricate(data) or _values(TEXT.sub(b"", data)) > VALUES):
        raise TooLarge(
            f"the body has more than {VALUES:,} values (commas and opening brackets)",
            remedy="send less at once: 1,024 calls are a good batch; or large data as a blob or file",
            limit_values=VALUES,
        )


def _is_intricate(data: bytes) -> bool:
    """Return True if a search for texts would take long: many quotes or escapes."""
    return data.count(b'"') - data.count(b'\\"') > QUOTES or data.count(b"\\") > ESCAPES


def _values(data: bytes) -> int:
    return data.count(b",") + data.count(b"[") + data.count(b"{")


class Decoder(Protocol):
    """Decodes the bodies of one route."""

    async def read(self, data: bytes, coding: str) -> Any:
        """Decode a body, beside the loop if it is large. See BodyDecoder."""
        ...


class BodyDecoder:
    """Decodes bodies of one route, in JSON or msgpack.

    `optional`: an empty body is the type's default.
    """

    def __init__(self, in_json: Any, in_msgpack: Any = None, optional: bool = False) -> None:
        self._types = {JSON: in_json, MSGPACK: in_msgpack or in_json}
        self._json = msgspec.json.Decoder(self._types[JSON])
        self._large_json = msgspec.json.Decoder(self._types[JSON], float_hook=float_of)
        self._msgpack = msgspec.msgpack.Decoder(self._types[MSGPACK])
        self._optional = optional

    async def read(self, data: bytes, coding: str) -> Any:
        """Decode a body, beside the loop if it is large. Raises as `decode`, and TooLarge."""
        if len(data) <= LARGE_BYTES:
            return self.decode(data, coding)
        return await off_loop(self._decode_large, data, coding)

    def _decode_large(self, data: bytes, coding: str) -> Any:
        if coding == JSON:
            check_json(data)
        return self.decode(data, coding)

    def decode(self, data: bytes, coding: str) -> Any:
        """Decode a body.

        Raises Malformed if it is not JSON or msgpack, Invalid if it does not match the route's
        type.
        """
        if not data and self._optional:
            return self._types[coding]()
        try:
            if coding == MSGPACK:
                return self._msgpack.decode(data)
            check_numbers(data)
            return (self._large_json if len(data) > LARGE_BYTES else self._json).decode(data)
        except msgspec.ValidationError as e:
            refuse(e, self._types[coding], "the body")
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            raise Malformed(
                f"the body is not {coding}: {'it is empty' if not data else e}",
                remedy="send one JSON value in UTF-8" if coding == JSON else "send one msgpack value",
            ) from None
        except RecursionError:
            raise Malformed("the body is nested too deeply", remedy="send flatter data, or a file as a blob") from None


def decode_query(request: web.Request, kind: type[msgspec.Struct]) -> Any:
    """Decode the query.

    Raises Invalid for a parameter that is unknown, given twice, or of another type.
    """
    query = request.query
    values = dict(query)
    if len(values) != len(query):
        twice = next(k for k, count in Counter(k for k, _ in query.items()).items() if count > 1)
        raise Invalid(f"the parameter {twice!r} is given twice", remedy="give it once")
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as e:
        refuse(e, kind, "the query")


def refuse(error: msgspec.ValidationError, kind: Any, where: str) -> NoReturn:
    """Raise Invalid for an error of decoding, with the path.

    For an unknown field the error also has the most similar known one.
    """
    text = str(error)
    if len(text) > ERROR_CHARS:  # it has a field's name, which may be as long as the body
        text = f"{text[: ERROR_CHARS // 2]}…{text[-ERROR_CHARS // 2 :]}"
    at = _AT.search(text)
    path = at["path"] if at else "$"
    unknown = _UNKNOWN.search(text)
    if unknown:
        known = list(fields_at(kind, path))
        near = difflib.get_close_matches(unknown["field"][:100], known, n=1)
        remedy = f"did you mean `{near[0]}`?" if near else f"it takes: {', '.join(known) or 'none'}"
        raise Invalid(f"{where}: {text}", remedy=remedy, path=path, field=unknown["field"]) from None
    missing = re.search(r"missing required field `([^`]*)`", text)
    name = getattr(kind, "__name__", "it")
    remedy = f"add `{missing[1]}`" if missing else f"the form is {name} in /openapi.json; /docs shows it"
    raise Invalid(f"{where}: {text}", remedy=remedy, path=path) from None


def fields_at(kind: Any, path: str) -> Iterator[str]:
    """Yield the field names of the object at a path in a type.

    The path is msgspec's, such as "$.files[0]".
    """
    here = mi.type_info(kind)
    for name, index in re.findall(r"\.([^.\[\]]+)|(\[[^\]]*\])", path):
        here = _step(here, name, bool(index))
    for option in _options(here):
        if isinstance(option, mi.StructType):
            yield from (f.encode_name for f in option.fields)


def _step(here: mi.Type, name: str, index: bool) -> mi.Type:
    for option in _options(here):
        if index and isinstance(option, mi.ListType | mi.SetType | mi.VarTupleType):
            return option.item_type
        if index and isinstance(option, mi.DictType):
            return option.value_type
        if name and isinstance(option, mi.StructType):
            for field in option.fields:
                if field.encode_name == name:
                    return field.type
    return mi.AnyType()


def _options(here: mi.Type) -> tuple[mi.Type, ...]:
    return here.types if isinstance(here, mi.UnionType) else (here,)
