"""Ids of tasks on the command line: the whole, or the first digits that suffice."""

from __future__ import annotations

import re
from collections.abc import Iterable

from oncue.cli.output import ambiguous, when
from oncue.client import Client
from oncue.errors import NotFound

CANDIDATES = 10  # are listed if an id means several tasks
_FORM = re.compile(r"[0-9a-f.-]{4,40}", re.IGNORECASE)
_WHOLE = re.compile(r"[0-9a-f]{32}", re.IGNORECASE)


def may_be_task(text: str) -> bool:
    """Return True if the text has the form of a task's id, or of its beginning."""
    return _FORM.fullmatch(text) is not None


def whole_id(client: Client, text: str) -> str:
    """Return the id of the task that a person means. Raises NotFound, Invalid.

    No request is made for a whole id.
    """
    if _WHOLE.fullmatch(text.replace("-", "")):
        return text
    found = client.tasks.find(text, CANDIDATES + 1)
    if not found:
        raise NotFound(f"there is no task {text}", remedy="oncue tasks list shows yours")
    if len(found) > 1:
        listed = [f"{t.short or t.id}  {t.state:9}  {t.name}  {when(t.accepted_us)}" for t in found[:CANDIDATES]]
        if len(found) > CANDIDATES:
            listed.append("... and more")
        raise ambiguous(text, "tasks", listed, "give more digits of the id")
    return found[0].id


def whole_ids(client: Client, texts: Iterable[str]) -> list[str]:
    """Return the ids of these tasks, each once. Raises NotFound, Invalid."""
    return list(dict.fromkeys(whole_id(client, text) for text in texts))


def newest_id(client: Client) -> str:
    """Return the id of the newest task. Raises NotFound."""
    for task in client.tasks.list(limit=1):
        return task.id
    raise NotFound("there are no tasks yet", remedy="oncue invoke FILE.py:NAME runs a function")
