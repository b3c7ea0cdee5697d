"""Live messages of the server, until it closes the stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from oncue.cli.output import json_line
from oncue.client import Client
from oncue.errors import Unreachable


def follow_json(
    client: Client, kinds: tuple[str, ...], is_meant: Callable[[dict[str, Any]], bool] = lambda item: True
) -> None:
    """Print live messages of these kinds as JSON lines.

    Raises Unreachable when the server closes the stream.
    """
    for kind, data in client.live(*kinds):
        if kind and is_meant(data):
            json_line({"kind": kind, "data": data})
    ended(client)


def ended(client: Client) -> None:
    """Raise the error for a stream that the server has closed."""
    _ = client.me  # raises the better error if the token is not valid any more
    raise Unreachable("the server has closed the stream", remedy="run the command again")
