"""Packs the function that sends messages (send.py)."""

from __future__ import annotations

import hashlib
import inspect
from functools import cache
from pathlib import Path

from oncue.functions.body import FunctionBody, Packed
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION

FILE = "notify.py"


@cache
def _source() -> str:
    return Path(__file__).with_name("send.py").read_text(encoding="utf-8")


def pack_notify(name: str) -> Packed:
    """Pack it under this name. A worker of any Python version runs its source."""
    source = _source()
    body = encode(
        FunctionBody(
            v=VERSION,
            name=name,
            qualname="notify",
            module="notify",
            python="",
            source=source,
            pickle=b"",
            siblings={},
            requires=(),
            oncue="",
            entry="notify",
            file=FILE,
        )
    )
    return Packed(hashlib.sha256(body).hexdigest(), body, name, "(**message)", inspect.cleandoc(_DOC), "")


_DOC = "Sends a message by a webhook, to a chat, or by mail."
