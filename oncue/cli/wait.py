"""Waiting for a call's end, and saying why it does not begin."""

from __future__ import annotations

from typing import Any, NamedTuple

from oncue.cli.output import say, when
from oncue.client import Client
from oncue.client.task import Task
from oncue.errors import NotFound, NotReady, OncueError, Unreachable

LOOK_S, MOST_S = 1.0, 5.0  # between looks: the first, and the longest
COMES_NOT = ("away", "never")  # states of an endpoint whose agent is not there


class Reason(NamedTuple):
    kind: tuple[Any, ...]  # what is told again when it changes; the text may count
    waits: bool
    text: str


def await_end(client: Client, task: Task[Any]) -> OncueError | None:
    """How it ended, as `task.exception()`. While it waits, stderr says why: after a second, and when that changes."""
    pause, told = LOOK_S, None
    while True:
        try:
            return task.exception(pause)
        except TimeoutError:
            pause = min(pause * 2, MOST_S)
        reason = why(client, task)
        if reason.kind != told and (reason.waits or told is not None):
            told = reason.kind
            say(("waiting: " if reason.waits else "") + reason.text, err=True)


def why(client: Client, task: Task[Any]) -> Reason:
    """Where it is, and what it waits for."""
    try:
        info = client.tasks.get(task.id)
        endpoint = client.endpoints.get(info.endpoint_id)
    except (Unreachable, NotReady) as e:
        return Reason(("server",), True, f"{e.message}; the server is asked again")
    except NotFound:  # it belongs to somebody else
        return Reason((info.state, info.sent), not info.sent, info.why)
    away = endpoint.state in COMES_NOT
    text = info.why
    if away and endpoint.since_us:
        text = (
            f"endpoint {info.endpoint!r} is away since {when(endpoint.since_us)}; "
            f"start it where it lives: oncue endpoint start {info.endpoint}"
        )
    return Reason((info.state, info.sent, endpoint.state), away or not info.sent, text)
