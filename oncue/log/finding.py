"""Finding of an examination, as shown by `oncue doctor`."""

from __future__ import annotations

import msgspec

SKEW_S = 5.0  # clocks that differ by more are wrong


class Finding(msgspec.Struct, frozen=True):
    check: str
    ok: bool
    found: str
    remedy: str = ""
