"""Client of a command, and parsers of arguments that commands share."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import click
import msgspec

from oncue.client import Client
from oncue.errors import Invalid

IDENTIFIER = r"[A-Za-z_]\w*"


@contextlib.contextmanager
def connected() -> Iterator[Client]:
    """Open a client of the server at ONCUE_URL, or of the local server.

    The token for ONCUE_URL is in ONCUE_TOKEN.
    """
    client = Client(patience=30)
    try:
        yield client
    finally:
        client.close(flush=False)


def arguments(given: tuple[str, ...], option: str = "--arg", name: str = IDENTIFIER) -> dict[str, Any]:
    """Parse `k=text` and `k:=json` of the command line. Raises Invalid.

    `name`: regular expression of names.
    """
    parsed: dict[str, Any] = {}
    for text in given:
        match = re.match(rf"({name})(:?=)(.*)", text, re.DOTALL)
        if match is None:
            raise Invalid(
                f"{option} {text!r} is not name=text or name:=json",
                remedy=f"for example {option} path=/data or {option} n:=3",
            )
        word, how, value = match.groups()
        if word in parsed:
            raise Invalid(
                f"{option} {word} is given twice", remedy=f"give it once; a list is {option} {word}:='[1, 2]'"
            )
        if how == "=":
            parsed[word] = value
            continue
        try:
            parsed[word] = msgspec.json.decode(value)
        except msgspec.DecodeError as e:
            raise Invalid(f"{option} {word}:= is not JSON: {e}", remedy=f"for text write {word}=…") from None
    return parsed


def json_file(path: str) -> Any:
    """Read JSON from a file; "-" is stdin. Raises Invalid."""
    try:
        with click.open_file(path, "rb") as f:
            return msgspec.json.decode(f.read())
    except OSError as e:
        raise Invalid(
            f"{path} cannot be read: {e.strerror}", remedy="give the path of a JSON file, or - for stdin"
        ) from None
    except msgspec.DecodeError as e:
        raise Invalid(f"{path} is not JSON: {e}", remedy="check it with `python -m json.tool`") from None


def seconds(text: str | None) -> float | None:
    """Return a duration such as 30s or 5m in seconds. Raises Invalid."""
    if text is None:
        return None
    from oncue.quantities import duration_ms

    try:
        return duration_ms(float(text) if re.fullmatch(r"[\d.]+", text) else text) / 1000
    except ValueError as e:
        raise Invalid(str(e), remedy="for example 30s, 5m or 2h") from None
