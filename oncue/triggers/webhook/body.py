"""Data of a request that is no CloudEvent: JSON, text, forms, or bytes."""

from __future__ import annotations

import re
from binascii import a2b_qp
from typing import Any

import msgspec

from oncue.errors import Invalid
from oncue.protocol.charsets import decode_text, is_json, is_text, media_type
from oncue.protocol.cloudevents import decode_data
from oncue.protocol.cloudevents_http import check_containers
from oncue.protocol.records import STORED_EVENT_BYTES

JSON, FORM, BYTES = "application/json", "application/x-www-form-urlencoded", "application/octet-stream"
_NOT_ENCODED = re.compile(rb"%(?![0-9A-Fa-f]{2})|[\r\n]")
MAX_FIELDS = 1_000  # of a form
MAX_TEXT_BYTES = STORED_EVENT_BYTES - (256 << 10)  # in JSON, beside the attributes of the event
_encode = msgspec.json.Encoder().encode


def read_body(content_type: str, body: bytes, unpack_forms: bool = False) -> tuple[str | None, Any]:
    """Return (content type, data) of a body.

    `unpack_forms`: a form becomes an object. One whose field `payload` is JSON always becomes that.
    Raises Invalid if the body claims to be JSON and is not, and TooLarge.
    """
    kind = media_type(content_type)
    if not body:
        return None, None
    if is_json(content_type):
        check_containers(body)
        data, named = decode_data(body, content_type)
        return named, data
    if kind == FORM and (found := _read_form(body, unpack_forms)) is not None:
        return JSON, found
    # curl -d '{...}' sends the content type of a form.
    if (kind.startswith("text/") or kind in ("", FORM)) and body.lstrip()[:1] in (b"{", b"["):
        check_containers(body)
        try:
            return JSON, decode_data(body, JSON)[0]
        except Invalid:
            pass
    if kind in ("", FORM) or is_text(content_type):
        return _read_text(content_type or "text/plain", body, guess=kind.startswith("text/"))
    return content_type, body


def _read_text(content_type: str, body: bytes, guess: bool) -> tuple[str, Any]:
    """Return a text; bytes if its charset is not known.

    `guess`: a text without a charset that is not UTF-8 is ISO 8859-1, as HTTP had it.
    """
    found = decode_text(body, content_type)
    if found is None and guess and not re.search("charset", content_type, re.IGNORECASE):
        found = decode_text(body, f"{content_type}; charset=iso-8859-1")
    if found is None:
        return (BYTES if content_type == "text/plain" and not guess else content_type), body
    text, named = found
    if 6 * len(body) > MAX_TEXT_BYTES and len(_encode(text)) > MAX_TEXT_BYTES:
        return content_type, body  # mostly control characters: as bytes it is smaller
    return named, text


def _unquoted(text: bytes) -> str:
    """Decode a part of a form.

    Its escapes are like those of quoted-printable, which C code decodes.
    """
    plain = text.replace(b"=", b"=3D").replace(b"+", b" ").replace(b"%", b"=")
    return a2b_qp(plain).decode()


def _read_form(body: bytes, unpack: bool) -> Any:
    """Return the JSON of a form's `payload`, or its fields; None: neither."""
    if not body.startswith(b"payload=") and not unpack:
        return None
    parts = body.split(b"&") if body.count(b"&") < MAX_FIELDS else []
    if not parts or not all(b"=" in part for part in parts) or _NOT_ENCODED.search(body):
        return None
    try:
        fields = [(_unquoted(name), _unquoted(text)) for name, _, text in (part.partition(b"=") for part in parts)]
    except UnicodeDecodeError:
        return None
    names = [name for name, _ in fields]
    if names == ["payload"]:
        try:
            payload = fields[0][1].encode()
            check_containers(payload)
            data = decode_data(payload, JSON)[0]
        except Invalid:
            data = None
        if isinstance(data, dict | list):
            return data
    if not unpack:
        return None
    found: dict[str, Any] = {}
    for name, text in fields:  # a name that comes again has a list
        found.setdefault(name, []).append(text)
    return {name: texts[0] if len(texts) == 1 else texts for name, texts in found.items()}
