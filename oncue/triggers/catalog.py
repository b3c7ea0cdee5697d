"""The kinds of triggers.

A new kind is a module (or folder) and one line in KINDS.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

import msgspec

from oncue.triggers.base import Trigger

#: kind in a rule file -> "module:class", imported when a rule file first names the kind.
KINDS = {
    "file": "oncue.triggers.file.trigger:FileTrigger",
    "webhook": "oncue.triggers.webhook.trigger:WebhookTrigger",
}


def trigger_class(kind: str) -> type[Trigger]:
    """Return the class of a kind.

    Raises KeyError; MissingExtra when its libraries are missing.
    """
    module, _, name = KINDS[kind].partition(":")
    found: type[Trigger] = getattr(import_module(module), name)
    return found


class OptionStructs(Mapping[str, type[msgspec.Struct]]):
    """Mapping kind -> option Struct, for the parser of rule files."""

    def __getitem__(self, kind: str) -> type[msgspec.Struct]:
        return trigger_class(kind).options

    def __iter__(self) -> Iterator[str]:
        return iter(KINDS)

    def __len__(self) -> int:
        return len(KINDS)
