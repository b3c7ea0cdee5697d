"""Tables of HTML that a notebook shows; all texts in them are escaped."""

from __future__ import annotations

import html
import time
from collections.abc import Iterable, Sequence
from typing import Any

SHOWN_CHARS = 2_000  # of a value


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table with a head, unless `columns` is empty."""
    head = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
    body = "".join("<tr>" + "".join(f"<td>{_text(v)}</td>" for v in row) + "</tr>" for row in rows)
    return f"<table>{f'<thead><tr>{head}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"


def record_table(record: Any) -> str:
    """Return the fields of a Struct as rows, without those that have their default."""
    kind = type(record)
    defaults = dict(zip(reversed(kind.__struct_fields__), reversed(kind.__struct_defaults__), strict=False))
    values = [(name, getattr(record, name)) for name in kind.__struct_fields__]
    told = [(n, v) for n, v in values if v not in ("", None, [], {}) and (n not in defaults or v != defaults[n])]
    return table((), [(name.removesuffix("_us"), _value(name, value)) for name, value in told])


def time_text(us: int) -> str:
    """Return a unix time in µs as local time; "" for 0."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(us / 1e6)) if us else ""


def _value(name: str, value: Any) -> str:
    if name.endswith("_us") and isinstance(value, int):
        return time_text(value)
    if hasattr(value, "__struct_fields__"):
        return Html(record_table(value))
    if isinstance(value, list) and value and all(hasattr(item, "__struct_fields__") for item in value[:1]):
        return Html("".join(record_table(item) for item in value))
    text = str(value)
    text = text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]} ..."
    return Html(f"<pre>{html.escape(text)}</pre>") if "\n" in text.strip() else text


def _text(value: object) -> str:
    return value if isinstance(value, Html) else html.escape(str(value))
