"""CloudEvents 1.0 as JSON, and as Kafka records in structured or binary mode.

    structured   value: the event as JSON   headers: content-type: application/cloudevents+json
    binary       value: the data alone      headers: ce_id, ce_source ...; content-type of the data

oncue writes structured records, in which extensions keep their types. Other Kafka clients may write
either. Sources: CloudEvents specification 1.0.2, its JSON event format, its Kafka protocol binding.

Parsing is strict: an event that violates the standard raises Invalid, which names the attribute.
Attributes that the standard does not define become extensions.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any

import msgspec

from oncue.clocks.process import now_us
from oncue.errors import Invalid, TooLarge
from oncue.protocol.charsets import decode_text, is_json, is_text, media_type
from oncue.protocol.codec import DECODE_ERRORS
from oncue.protocol.json_numbers import LARGE_BYTES, check_numbers, float_of
from oncue.protocol.records import STORED_EVENT_BYTES, Event

STRUCTURED = "application/cloudevents+json"
JSON = "application/json"
Headers = tuple[tuple[str, bytes], ...]

_HEADERS: Headers = (("content-type", b"application/cloudevents+json; charset=UTF-8"),)
_encode = msgspec.json.Encoder().encode
_decode_small = msgspec.json.Decoder().decode
_decode_large = msgspec.json.Decoder(float_hook=float_of).decode

_REQUIRED = ("id", "source", "type")
_OPTIONAL = ("subject", "time", "datacontenttype", "dataschema")
_BODY = frozenset(("specversion", "data", "data_base64"))
_NAME = re.compile(r"[a-z0-9]+")
# Characters that the standard's String type excludes: controls and unpaired surrogates.
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
_MEDIA = re.compile(r"[\w!#$&^.+-]+/[\w!#$&^.+*-]+\s*(;.*)?", re.ASCII)
_INT_MIN, _INT_MAX = -(1 << 31), (1 << 31) - 1
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
MAX_DEPTH = 128  # of lists and objects in one another; Python fails at several hundred


# ---------------------------------------------------------------- records


def to_record(event: Event, *, binary: bool = False) -> tuple[bytes, Headers]:
    """Return (value, headers) of the record.

    In binary mode extensions become text. Data that is not bytes and has no content type is sent as
    application/json. Raises Invalid, and TooLarge over STORED_EVENT_BYTES.
    """
    if binary:
        return _to_binary(event)
    return to_json(event), _HEADERS


def from_record(value: bytes, headers: Sequence[tuple[str, bytes]] = ()) -> Event:
    """Parse a record in either mode; without headers it is structured.

    Raises Invalid, and TooLarge over STORED_EVENT_BYTES.
    """
    if headers == _HEADERS:  # written by oncue
        return from_json(value)
    named = {name.lower(): content for name, content in headers}
    kind = media_type(named.get("content-type", b"").decode("utf-8", "replace"))
    if kind == STRUCTURED:
        return from_json(value)
    if kind.startswith("application/cloudevents"):
        raise Invalid(
            f"content-type: {kind!r} is not a form of events that oncue reads",
            remedy=f"write one event a record, as {STRUCTURED} or in binary mode",
        )
    if any(name.startswith("ce_") for name in named):
        return _from_binary(value, named)
    if kind in ("", JSON):
        return from_json(value)
    raise Invalid(
        f"the record is no CloudEvent: its content type is {kind!r} and it has no ce_ headers",
        remedy=f"write it as {STRUCTURED}, or in binary mode with ce_ headers",
    )


def _to_binary(event: Event) -> tuple[bytes, Headers]:
    check(event)
    headers = [("ce_specversion", b"1.0")]
    headers += [(f"ce_{name}", getattr(event, name).encode()) for name in _REQUIRED]
    for name in ("subject", "time", "dataschema"):
        text = getattr(event, name)
        if text is not None:
            headers.append((f"ce_{name}", text.encode()))
    headers += [(f"ce_{name}", _as_text(value).encode()) for name, value in event.extensions.items()]
    content_type, value = event.datacontenttype, b""
    if event.data is not None:
        content_type, value = _data_bytes(event.data, content_type)
    if content_type is not None:
        headers.append(("content-type", content_type.encode()))
    return _bounded(value), tuple(headers)


def _data_bytes(data: Any, content_type: str | None) -> tuple[str | None, bytes]:
    if isinstance(data, bytes):
        return content_type, data
    if isinstance(data, str) and content_type is not None and not is_json(content_type):
        return content_type, data.encode()
    return content_type or JSON, _data_json(data)


def _from_binary(value: bytes, headers: Mapping[str, bytes]) -> Event:
    _bounded(value)
    fields: dict[str, Any] = {}
    for header, content in headers.items():
        if not header.startswith("ce_"):
            continue
        name = header[3:]
        if name in ("data", "data_base64"):
            raise Invalid(f"{name}: cannot be a header", remedy="the data is the record's value, its type content-type")
        fields[name] = _header_text(name, content)
    if "content-type" in headers:
        named = _header_text("content-type", headers["content-type"])
        _check_agree(named, fields.get("datacontenttype"))
        fields["datacontenttype"] = named
    data = None
    if value:
        data, content_type = decode_data(value, fields.get("datacontenttype"))
        if content_type is not None:
            fields["datacontenttype"] = content_type
    return _event(fields, data)


def _check_agree(content_type: str, attribute: str | None) -> None:
    """Raise Invalid if the attribute, which some senders add, differs."""
    if attribute is not None and media_type(attribute) != media_type(content_type):
        raise Invalid(
            f"datacontenttype: is {attribute!r}, and content-type says {content_type!r}",
            remedy="in binary mode the type of the data is content-type alone; or write the same in both",
        )


def _header_text(name: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise Invalid(f"{name}: its header is not UTF-8", remedy="headers of CloudEvents are UTF-8 text") from None


def decode_data(value: bytes, content_type: str | None) -> tuple[Any, str | None]:
    """Return the data of a body, and its content type.

    JSON is decoded; text becomes a string, whatever its charset, and its content type then says
    UTF-8. All else remains bytes. Raises Invalid if it claims to be JSON and is not.
    """
    if content_type is None:
        return value, None
    if is_json(content_type):
        return _decode_json(value, content_type)
    if is_text(content_type) and (found := decode_text(value, content_type)) is not None:
        return found
    return value, content_type  # of an unknown charset: left to the consumer


def _decode(value: bytes | str) -> Any:
    """Decode JSON. Raises what is in DECODE_ERRORS."""
    check_numbers(value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value)
    return (_decode_large if len(value) > LARGE_BYTES else _decode_small)(value)


def _decode_json(value: bytes, content_type: str) -> tuple[Any, str]:
    try:
        data = _decode(value)
    except DECODE_ERRORS as e:
        found = decode_text(value, content_type)  # in another charset, or with a byte order mark
        try:
            data, content_type = _decode(found[0] if found else value), found[1] if found else content_type
        except DECODE_ERRORS:
            raise Invalid(f"data: not the JSON that its content type says: {e}", remedy="send JSON in UTF-8") from None
        value = found[0].encode() if found else value
    _check_depth(value)
    return data, content_type


def _as_text(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


# ---------------------------------------------------------------- JSON


def to_builtins(event: Event) -> dict[str, Any]:
    """Return the JSON object of an event, not checked. Bytes become `data_base64`."""
    found: dict[str, Any] = {"specversion": "1.0", "id": event.id, "source": event.source, "type": event.type}
    for name in _OPTIONAL:
        text = getattr(event, name)
        if text is not None:
            found[name] = text
    found.update(event.extensions)
    if isinstance(event.data, bytes):
        found["data_base64"] = base64.b64encode(event.data).decode()
    elif event.data is not None:
        found["data"] = event.data
    return found


def to_json(event: Event) -> bytes:
    """Encode an event as JSON. Raises Invalid, and TooLarge over STORED_EVENT_BYTES."""
    check(event)
    try:
        value = _bounded(_encode(to_builtins(event)))
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as e:
        raise _not_json(e) from None
    _check_depth(value)
    return value


def from_json(value: bytes | str) -> Event:
    """Parse an event in JSON. Raises Invalid, and TooLarge over STORED_EVENT_BYTES."""
    if len(value) > STORED_EVENT_BYTES:
        raise _too_large(len(value))
    try:
        found = _decode(value)
    except DECODE_ERRORS as e:
        raise Invalid(f"not JSON: {e}", remedy="an event is one JSON object, in UTF-8") from None
    _check_depth(value.encode() if isinstance(value, str) else value)
    if not isinstance(found, dict):
        raise Invalid(
            f"an event is a JSON object, not {_kind(found)}", remedy="send one event, or a list where it is asked for"
        )
    return from_builtins(found)


def from_builtins(found: Mapping[str, Any]) -> Event:
    """Convert a decoded JSON object.

    Attributes that are null count as absent. Raises Invalid.
    """
    fields = {name: value for name, value in found.items() if name not in ("data", "data_base64") and value is not None}
    data = found.get("data")
    encoded = found.get("data_base64")
    if encoded is not None:
        if data is not None:
            raise Invalid("data_base64: there is data as well", remedy="an event has one of data and data_base64")
        data = _from_base64(encoded)
    return _event(fields, data)


def _from_base64(encoded: Any) -> bytes:
    if not isinstance(encoded, str):
        raise Invalid(f"data_base64: must be a string, not {_kind(encoded)}")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as e:
        raise Invalid(
            f"data_base64: not Base64: {e}", remedy="use the standard alphabet with padding (RFC 4648)"
        ) from None


def _data_json(data: Any) -> bytes:
    try:
        value = _encode(data)
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as e:
        raise _not_json(e) from None
    _check_depth(value)
    return value


def _check_depth(encoded: bytes) -> None:
    """Raise Invalid for JSON whose lists and objects are nested too deeply.

    What one place could just decode, another could not: a list of events, say.
    """
    if encoded.count(b"[") + encoded.count(b"{") <= MAX_DEPTH:
        return
    outside = encoded.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]  # of strings
    steps = memoryview(b"".join(outside).translate(_STEPS, _NO_BRACKETS)).cast("b")
    if max(accumulate(steps)) <= MAX_DEPTH + 1:  # the event itself is an object
        return
    raise Invalid(
        f"data: lists and objects are nested over {MAX_DEPTH} deep",
        remedy="flatten it, or put it elsewhere and name it in the event (dataref)",
    )


def check_data(data: Any, path: str = "data") -> None:
    """Raise Invalid, which names the path, for a value that JSON cannot represent.

    Without this check the encoder would convert it silently.
    """
    kind = type(data)
    if kind is str or kind is int or kind is bool or data is None:
        return
    match data:
        case float():
            if not math.isfinite(data):
                raise Invalid(
                    f"{path}: {data} is no number of JSON", remedy="leave it out, or send None or a text instead"
                )
        case Mapping():
            for name, value in data.items():
                if not isinstance(name, str):
                    raise Invalid(
                        f"{path}: the key {name!r:.100} is not a string", remedy="keys of JSON objects are strings"
                    )
                check_data(value, f"{path}.{name}")
        case list() | tuple():
            for n, value in enumerate(data):
                check_data(value, f"{path}[{n}]")
        case bytes() | bytearray() | memoryview():
            raise Invalid(
                f"{path}: {kind.__name__} cannot be a part of JSON",
                remedy="encode it as a text (base64, hex), or give bytes alone as the data",
            )
        case str() | int():
            return  # of a subclass
        case _:
            raise Invalid(
                f"{path}: {kind.__name__} cannot be written as JSON",
                remedy="a list does for a set, a text for a time: str(value), list(value)",
            )


def _not_json(e: Exception) -> Invalid:
    return Invalid(
        f"data: cannot be written as JSON: {e}", remedy="give plain values (str, numbers, lists, dicts) or bytes"
    )


# ---------------------------------------------------------------- conformance


def check(event: Event) -> None:
    """Raise Invalid, with the attribute's name, if the event violates the spec."""
    for name in _REQUIRED:
        _check_text(name, getattr(event, name))
    for name in _OPTIONAL:
        text = getattr(event, name)
        if text is not None:
            _check_text(name, text)
    if event.time is not None:
        _check_time(event.time)
    if event.datacontenttype is not None and not _MEDIA.fullmatch(event.datacontenttype):
        raise Invalid(f"datacontenttype: {event.datacontenttype!r} is not a media type", remedy="like application/json")
    for name, value in event.extensions.items():
        _check_extension(name, value)


def _event(fields: dict[str, Any], data: Any) -> Event:
    version = fields.pop("specversion", None)
    if version != "1.0":
        raise Invalid(
            "specversion: is missing" if version is None else f"specversion: {version!r} is not one that oncue reads",
            remedy='write CloudEvents 1.0: "specversion": "1.0"',
        )
    for name in _REQUIRED:
        if name not in fields:
            raise Invalid(f"{name}: is missing", remedy="an event has at least id, source, type and specversion")
    standard = {name: fields.pop(name) for name in (*_REQUIRED, *_OPTIONAL) if name in fields}
    event = Event(**standard, data=data, extensions=fields)
    check(event)
    return event


def _check_text(name: str, text: Any) -> None:
    if type(text) is not str:
        raise Invalid(f"{name}: must be a string, not {_kind(text)}")
    if not text:
        raise Invalid(f"{name}: must not be empty", remedy="leave it out" if name in _OPTIONAL else "")
    if _FORBIDDEN.search(text):
        raise Invalid(f"{name}: {text!r} has control characters", remedy="percent-encode them")


def time_text(at: datetime | None = None) -> str:
    """Return a time as CloudEvents write it: RFC 3339, UTC.

    Without a time, now. A time without a zone is local time.
    """
    at = datetime.fromtimestamp(now_us() / 1e6, UTC) if at is None else at.astimezone(UTC)
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _check_time(text: str) -> None:
    if _TIME.fullmatch(text):
        try:
            # A leap second is valid, but datetime does not support it.
            datetime.fromisoformat(text.upper().replace(":60", ":59"))
            return
        except ValueError:
            pass
    raise Invalid(f"time: {text!r} is not a time", remedy="write it like 2026-11-23T20:59:29.5Z (RFC 3339)")


def _check_extension(name: str, value: Any) -> None:
    if name in _BODY or name in Event.STANDARD or not _NAME.fullmatch(name):
        raise Invalid(
            f"{name}: is no name of an extension",
            remedy="names have lower-case letters a-z and digits; the rest is data",
        )
    kind = type(value)
    if kind is str:
        if _FORBIDDEN.search(value):
            raise Invalid(f"{name}: {value!r} has control characters", remedy="percent-encode them")
    elif kind is int:
        if not _INT_MIN <= value <= _INT_MAX:
            raise Invalid(f"{name}: {value} does not fit into 32 bits", remedy="write it as a string")
    elif kind is not bool:
        raise Invalid(
            f"{name}: an extension is a string, an integer or a boolean, not {_kind(value)}",
            remedy="put structured values into data",
        )


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _bounded(value: bytes) -> bytes:
    if len(value) > STORED_EVENT_BYTES:
        raise _too_large(len(value))
    return value


def _too_large(size: int) -> TooLarge:
    return TooLarge(
        f"the event has {size:,} bytes; {STORED_EVENT_BYTES:,} are the most",
        remedy="put the data elsewhere and name it in the event (dataref)",
        limit_bytes=STORED_EVENT_BYTES,
    )
