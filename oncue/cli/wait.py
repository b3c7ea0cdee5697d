"""Waits for a task to close; prints why it has not started."""

from __future__ import annotations

from typing import Any, NamedTuple

import click

from oncue.cli.output import as_json, say, when
from oncue.client import Client
from oncue.client.task import Task
from oncue.errors import NotFound, NotReady, Unreachable

FIRST_POLL_S, LONGEST_POLL_S = 1.0, 5.0  # the pause doubles in between
DISCONNECTED = ("away", "never")  # states of an endpoint without an agent


class WaitProgress(NamedTuple):
    """State of a task that has not closed, and the line that explains it."""

    key: tuple[Any, ...]  # the line is printed when this changes; the text itself may hold a count
    waits: bool
    text: str


def print_id(task: Task[Any], json_: bool) -> None:
    """Print the id of an accepted task, for a command that does not wait for its end."""
    if json_:
        as_json({"id": task.id})
    else:
        click.echo(task.id)


def await_end(client: Client, task: Task[Any]) -> BaseException | None:
    """Wait until the task closes; return its error as `task.exception()` does.

    After the first second, print to stderr why it waits, whenever that changes.
    """
    pause, printed = FIRST_POLL_S, None
    while True:
        try:
            return task.exception(pause)
        except TimeoutError:
            pause = min(pause * 2, LONGEST_POLL_S)
        progress = progress_of(client, task)
        if progress.key != printed and (progress.waits or printed is not None):
            printed = progress.key
            say(("waiting: " if progress.waits else "") + progress.text, err=True)


def progress_of(client: Client, task: Task[Any]) -> WaitProgress:
    """Return the task's state and the reason why it waits."""
    try:
        info = client.tasks.get(task.id)
        endpoint = client.endpoints.get(info.endpoint_id)
    except (Unreachable, NotReady) as e:
        return WaitProgress(("server",), True, f"{e.message}; trying again")
    except NotFound:  # the endpoint belongs to another person
        return WaitProgress((info.state, info.sent), not info.sent, info.why)
    away = endpoint.state in DISCONNECTED
    text = info.why
    if away and endpoint.since_us:
        text = (
            f"endpoint {info.endpoint!r} is away since {when(endpoint.since_us)}; "
            f"start it on its machine: oncue endpoint start {info.endpoint}"
        )
    return WaitProgress((info.state, info.sent, endpoint.state), away or not info.sent, text)
