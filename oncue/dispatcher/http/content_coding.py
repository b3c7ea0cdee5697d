"""Content codings of request bodies: gzip and deflate.

A body is decoded when its handler wants it, after all checks, in a thread, and only so far as its
limits allow: a small body may otherwise become a thousand times as large.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

from aiohttp import web

from oncue.errors import Malformed, TooLarge, UnsupportedType

CODINGS = ("gzip", "deflate")
RATIO = 100  # text of many equal lines becomes 20 to 50 times smaller
FREE_BYTES = 1 << 20  # up to this size any ratio will do
MEMBERS = 1_000  # of one gzip body
_WINDOW = 64 * 1024  # read at once; what follows a member is copied, so a window is small
_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS


def content_coding(request: web.Request) -> str:
    """Return "gzip", "deflate" or "" (no coding). Raises UnsupportedType."""
    header = request.headers.get("Content-Encoding")
    if header is None:
        return ""
    coding = header.strip().lower().removeprefix("x-")
    if coding in ("", "identity"):
        return ""
    if coding not in CODINGS or len(request.headers.getall("Content-Encoding")) > 1:
        raise UnsupportedType(
            f"the body is in the coding {header[:100]!r} - at the header Content-Encoding",
            remedy="send it as it is, or in gzip or deflate",
            accept_encoding=list(CODINGS),
        )
    return coding


def decompress(data: bytes, coding: str, limit: int) -> bytes | None:
    """Return the decoded body; None if it exceeds `limit` bytes.

    Raises Malformed for a body that is not in the coding, TooLarge for one that expands too much.
    """
    most = min(limit, max(FREE_BYTES, RATIO * len(data)))
    parts, size = [], 0
    try:
        for part in _parts(data, coding):
            parts.append(part)
            size += len(part)
            if size > most:
                if size > limit:
                    return None
                raise TooLarge(
                    f"the body expands to more than {RATIO} times its size",
                    remedy="send it without Content-Encoding",
                    limit_ratio=RATIO,
                )
    except (zlib.error, EOFError) as e:
        raise Malformed(
            f"the body cannot be read: {e or 'it ends too early'}",
            remedy=f"check Content-Encoding: this is not {coding}, or a part is missing",
        ) from None
    return b"".join(parts)


def _parts(data: bytes, coding: str) -> Iterator[bytes]:
    """Yield decoded parts of at most _WINDOW bytes."""
    bits = _GZIP if coding == "gzip" else _ZLIB if data[:1] and data[0] & 15 == 8 else _RAW
    decoder: Any = zlib.decompressobj(bits)
    members = 1
    for at in range(0, len(data), _WINDOW):
        rest = data[at : at + _WINDOW]
        while rest:
            if decoder.eof:
                members += 1
                if coding != "gzip" or members > MEMBERS:
                    raise zlib.error("more follows its end" if coding != "gzip" else f"more than {MEMBERS} members")
                decoder = zlib.decompressobj(bits)
            yield decoder.decompress(rest, _WINDOW)
            rest = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
    while not decoder.eof:  # some output may be left inside
        part = decoder.decompress(b"", _WINDOW)
        if not part:
            raise EOFError
        yield part
