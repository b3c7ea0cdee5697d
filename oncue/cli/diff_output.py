"""Prints the changes of a deploy or rollback: rules, functions, text."""

from __future__ import annotations

from collections.abc import Mapping

from oncue.cli.deploying.values import Values
from oncue.cli.output import say
from oncue.client import Client
from oncue.errors import NotFound
from oncue.protocol.api import Deployed, FunctionChange, FunctionInfo

HASH_CHARS = 12


def show(d: Deployed, err: bool) -> None:
    """Print the changes of one rule file.

    With `err` to stderr, if stdout is for JSON.
    """
    for word, names in (("new", d.added), ("changed", d.changed_rules), ("removed", d.removed)):
        if names:
            say(f"{d.label}: {word}: {', '.join(names)}", err=err)
    show_functions(d.label, d.functions, err=err)
    for note in d.notes:
        say(f"{d.label}: {note}", err=err)
    if d.diff:
        say(d.diff.rstrip("\n"), err=err)


def show_functions(label: str, changes: list[FunctionChange], err: bool = False) -> None:
    """Print the functions whose content changes.

    Functions of added and removed rules are left out.
    """
    for c in changes:
        if c.old and c.new:
            old, new = _named(c.old_version, c.old), _named(c.new_version, c.new)
            say(f"{label}: function {c.function}: {old} → {new}", err=err)


def _named(version: int, content: str) -> str:
    return f"version {version} ({content[:HASH_CHARS]})" if version else f"{content[:HASH_CHARS]}, not registered yet"


def changed_functions(client: Client, path: str, deployed: Mapping[str, str], values: Values) -> list[FunctionChange]:
    """Return the functions that a deploy of this rule file would change.

    Registers nothing.

    Raises RuleFileError, Invalid, NotFound, MissingExtra.
    """
    from oncue.cli.rule_files import pack_functions, read

    sets = read([path], values)
    packed = pack_functions(sets)
    changes = []
    packed |= sets[0].scripts
    for name in (*sets[0].functions, *sets[0].scripts):
        new = _registered(client, packed[name].id if name in packed else name)
        content = packed[name].id if name in packed else new.id if new else ""
        before = deployed.get(name, "")
        if content != before:
            old = _registered(client, before) if before else None
            versions = {"old_version": old.version if old else 0, "new_version": new.version if new else 0}
            changes.append(FunctionChange(function=name, old=before, new=content, **versions))
    return changes


def _registered(client: Client, name: str) -> FunctionInfo | None:
    try:
        return client.functions.get(name)
    except NotFound:
        return None
