"""Text in any charset, of a body and its content type.

Decoded text is stored as UTF-8, and the content type then says so.
"""

from __future__ import annotations

import codecs
import re

_CHARSET = re.compile(r";\s*charset\s*=\s*(\"[^\"]*\"|[^;\s]*)", re.IGNORECASE)
_XML = re.compile(rb"<\?xml\s[^>]{0,100}?encoding\s*=\s*[\"']([A-Za-z0-9._:-]{1,40})[\"']")
_XML_NAME = re.compile(r"(<\?xml\s[^>]{0,100}?encoding\s*=\s*[\"'])[A-Za-z0-9._:-]{1,40}([\"'])")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Codecs of Python that are charsets and take linear time; idna, say, does not.
_CHARSETS = re.compile(
    r"(ascii|utf-(8|16|32)(-[bl]e|-sig)?|iso8859-\d+|iso2022_\w+|cp\d+|koi8-[rtu]|mac-\w+|gb\w+|big5\w*|euc_\w+"
    r"|shift_ji\w+|johab|hz|ptcp154|tis-620|hp-roman8|kz1048)"
)


def media_type(content_type: str) -> str:
    """Return a content type without its parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def is_json(content_type: str) -> bool:
    return media_type(content_type).endswith(("/json", "+json"))


def is_text(content_type: str) -> bool:
    """Return True if a body of this content type is text, or has a charset."""
    kind = media_type(content_type)
    return kind.startswith("text/") or kind.endswith(("/xml", "+xml")) or bool(_CHARSET.search(content_type))


def decode_text(body: bytes, content_type: str) -> tuple[str, str] | None:
    """Return the text of a body, and its content type as UTF-8, or None.

    None: it is in another charset. The charset is that of the content type, of a byte order mark,
    or of an XML declaration; else UTF-8.
    """
    named = _charset(content_type)
    charset = named or _declared(body) or "utf-8"
    try:
        text = body.decode(_marked(body, charset))
    except (UnicodeDecodeError, LookupError):
        return None
    if text[:1] == "\ufeff":
        text = text[1:]
    if not named or named in ("utf-8", "ascii"):
        return _xml_in_utf8(text), content_type
    return _xml_in_utf8(text), _CHARSET.sub("; charset=utf-8", content_type, count=1)


def _charset(content_type: str) -> str:
    """Return the codec that a content type names; "": none that is known."""
    found = _CHARSET.search(content_type)
    return _codec(found[1].strip('"')) if found else ""


def _codec(name: str) -> str:
    try:
        codec = codecs.lookup(name.strip()).name if name.isascii() and 0 < len(name) <= 40 else ""
    except (LookupError, ValueError):
        codec = ""
    return codec if _CHARSETS.fullmatch(codec) else "unknown" if name else ""


def _declared(body: bytes) -> str:
    found = _XML.match(body)
    return _codec(found[1].decode()) if found else ""


def _marked(body: bytes, charset: str) -> str:
    """Return the codec by the byte order mark, if that fits the charset."""
    if not charset.startswith(("utf-8", "utf-16", "utf-32")):
        return charset
    marked = next((codec for mark, codec in _MARKS if body.startswith(mark)), charset)
    return marked if charset == "utf-8" or marked[:6] == charset[:6] else charset


def _xml_in_utf8(text: str) -> str:
    return _XML_NAME.sub(r"\g<1>utf-8\g<2>", text, count=1) if text.startswith("<?xml") else text
