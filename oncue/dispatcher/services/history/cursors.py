"""Cursors of pages that are rows of the view."""

from __future__ import annotations

from oncue.errors import Invalid


def position(cursor: str) -> int:
    """Return the row after which a page begins. Raises Invalid."""
    if not cursor:
        return 0
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise Invalid(f"cursor: {cursor!r} is not one", remedy="give back the `next` of the page before, as it was")
    return int(cursor)
