"""Writes the deployed rule files to a directory that deploys to the same."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from oncue.cli.deploying.lock_file import OWN, Locks, write_locks
from oncue.client import Client
from oncue.errors import Conflict, Invalid, NotFound
from oncue.protocol.records import origin

_PART = re.compile(r"[^\s/\\.][^/\\]*")  # of a label, as a file's or folder's name


class ExportedFile(msgspec.Struct, frozen=True):
    """A rule file that was written, and what it needs to deploy to the same."""

    label: str
    version: int
    file: str
    functions: dict[str, str]
    notes: list[str]


def export_rules(client: Client, folder: Path, owner: str, overwrite: bool) -> list[ExportedFile]:
    """Write the deployments that the caller sees; of `owner` only, if there is one.

    Raises NotFound if there are none, Conflict for a file with another text, unless `overwrite`.
    """
    found = [(_path(d["label"], folder, owner), d) for d in _deployments(client, owner)]
    if not found:
        raise NotFound("nothing is deployed that could be exported", remedy="oncue rules list shows what is deployed")
    for path, d in found:
        if not overwrite and path.exists() and path.read_bytes() != d["text"].encode():
            raise Conflict(f"{path} has another text", remedy="export to another directory, or give --overwrite")
    for path, d in found:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(d["text"].encode())
    locks: Locks = {}
    for path, d in found:
        own = {name: content for name, content in d["functions"].items() if OWN.fullmatch(name)}
        locks[str(path.relative_to(folder).with_suffix(""))] = own
    write_locks(folder, locks)
    return [ExportedFile(d["label"], d["version"], str(path), d["functions"], list(_notes(d))) for path, d in found]


def _deployments(client: Client, owner: str) -> Iterator[dict[str, Any]]:
    """Yield what is in force, by label."""
    labels = {rule.label for rule in client.rules.list()} | {trigger.label for trigger in client.triggers.list()}
    for label in sorted(labels):
        if owner and not label.startswith(owner + "/"):
            continue
        newest = max(client.rules.history(label), key=lambda d: int(d["version"]))
        if not newest["removed"]:
            yield newest


def _path(label: str, folder: Path, owner: str) -> Path:
    """Return the file of a label, inside the folder. Raises Invalid."""
    parts = label.removeprefix(f"{owner}/" if owner else "").split("/")
    if not all(_PART.fullmatch(part) for part in parts):
        raise Invalid(f"the label {label!r} is no name of a file", remedy="deploy it under another --label")
    return folder.joinpath(*parts[:-1], parts[-1] + ".yaml")


def _notes(d: dict[str, Any]) -> Iterator[str]:
    """Yield what the text refers to beside its former place."""
    from oncue.rules.parsing.rule_file import parse
    from oncue.triggers.catalog import OptionStructs

    rules = parse(d["text"], d["label"], OptionStructs(), triggers=None, stored=True)
    where = os.path.dirname(origin(d["host"], d["path"]))
    for trigger in rules.triggers:
        path = getattr(trigger.options, "path", "")
        if path and not os.path.isabs(os.path.expanduser(path)):
            yield f"trigger {trigger.name} watches {path}, relative to {where}"
    events = {test.event for rule in rules.rules for test in rule.tests if isinstance(test.event, str)}
    events |= {event for rule in rules.rules for t in rule.tests for _, event in t.events if isinstance(event, str)}
    for event in sorted(events):
        yield f"its tests read {event}, which is in {where}"
