"""Triggers: sources of events. `kinds()` lists them; each is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

from oncue.triggers.base import Trigger

_HOMES = {"file": "oncue.triggers.file.trigger:FileTrigger", "webhook": "oncue.triggers.webhook.trigger:WebhookTrigger"}


def kinds() -> dict[str, type[Trigger]]:
    """Every kind of trigger and its class."""
    found: dict[str, type[Trigger]] = {}
    for kind, home in _HOMES.items():
        module, _, name = home.partition(":")
        found[kind] = getattr(import_module(module), name)
    return found
