"""Command group that names the nearest command where one is misspelt."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import click

#: Words of other tools, and the command that is meant.
HABITS = {
    "ls": "list",
    "ps": "list",
    "get": "show",
    "describe": "show",
    "info": "show",
    "log": "logs",
    "rm": "revoke",
    "delete": "revoke",
    "kill": "cancel",
    "stop": "cancel",
    "rerun": "retry",
    "add": "create",
    "new": "create",
    "send": "emit",
    "top": "watch",
}


def nearest(word: str, names: Iterable[str]) -> str:
    """Return " Did you mean ...?", or "" if nothing is near."""
    known = list(names)
    lowered = word.lower()
    if lowered == "help":
        return " For help: -h, before or after a command."
    near = difflib.get_close_matches(lowered, known, n=1)
    if HABITS.get(lowered) in known:
        near = [HABITS[lowered]]
    elif not near:
        near = [name for name in known if name.startswith(lowered)][:1]
    return f" Did you mean {near[0]!r}?" if near else ""


class Group(click.Group):
    """Group of the commands for one noun."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word = args[0] if args else ""
        if word and not word.startswith("-") and self.get_command(ctx, word) is None:
            names = self.list_commands(ctx)
            command = f"{ctx.info_name} {word}"
            ctx.fail(f"there is no command {command!r}.{nearest(word, names)} There are: {', '.join(names)}")
        return super().resolve_command(ctx, args)
