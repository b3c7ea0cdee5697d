"""Escapes for characters that a terminal or a log reader would obey.

These are control characters (line breaks, ESC), line and paragraph separators, and characters that
change the direction of text. Whoever names a task or an event chooses them.
"""

from __future__ import annotations


def escaped(text: str, *, lines: bool = False) -> str:
    """Return the text with escapes for its unprintable characters.

    `lines`: keep line breaks and tabs.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or (lines and c in "\n\t") else _escape(c) for c in text)


def escaped_json(text: str) -> str:
    """Return a JSON document with JSON escapes for unprintable characters.

    Line breaks and tabs between its values stay. Within strings, JSON has none.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else _json_escape(c) for c in text)


def _escape(c: str) -> str:
    n = ord(c)
    return f"\\x{n:02x}" if n < 256 else f"\\u{n:04x}" if n < 65536 else f"\\U{n:08x}"


def _json_escape(c: str) -> str:
    n = ord(c)
    if n < 0x10000:
        return f"\\u{n:04x}"
    n -= 0x10000
    return f"\\u{0xD800 + (n >> 10):04x}\\u{0xDC00 + (n & 0x3FF):04x}"
