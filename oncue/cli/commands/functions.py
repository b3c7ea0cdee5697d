"""`oncue functions`."""

from __future__ import annotations

import re

import click

from oncue.cli import completers
from oncue.cli.client import connected
from oncue.cli.command_group import Group
from oncue.cli.output import as_json, facts, json_option, listing, say, when
from oncue.errors import Invalid
from oncue.protocol.api import FunctionInfo


@click.group(cls=Group)
def functions() -> None:
    """List, inspect and register functions.

    \b
    Example:
      oncue functions list
    """


@functions.command("list")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="List at most so many.")
@json_option
def list_(limit: int, json_: bool) -> None:
    """List the registered functions.

    \b
    Example:
      oncue functions list --json
    """
    head = ("NAME", "HASH", "OWNER", "PYTHON", "SIGNATURE", "SINCE")
    with connected() as client:
        listing(client.functions.list(limit), json_, head, _row, "no functions")


def _row(f: FunctionInfo) -> tuple[str, ...]:
    return (f"{f.name}@{f.version}", f.id[:16], f.owner, f.python, f.signature, when(f.at_us))


@functions.command()
@click.argument("name", shell_complete=completers.functions)
@json_option
def show(name: str, json_: bool) -> None:
    """Show one function with its source.

    NAME is name, name@version, or the content hash.

    \b
    Example:
      oncue functions show reconstruct@2
    """
    with connected() as client:
        f = client.functions.get(name)
    if json_:
        as_json(f)
        return
    pairs = [("name", f"{f.name}@{f.version}"), ("hash", f.id), ("owner", f.owner), ("python", f.python)]
    more = [
        ("signature", f.signature),
        ("file", f.file),
        ("registered", when(f.at_us)),
        ("doc", f.doc),
        ("source", f.source),
    ]
    facts([*pairs, ("bytes", f.size_bytes), *more])


@functions.command()
@click.argument("places", nargs=-1, required=True, metavar="FILE.PY:NAME...", shell_complete=completers.files)
@json_option
def register(places: tuple[str, ...], json_: bool) -> None:
    """Register functions from Python files.

    Repeating it with the same content changes nothing.

    \b
    Example:
      oncue functions register tomo.py:reconstruct
    """
    from oncue.functions import pack_file

    packed = []
    for place in places:
        match = re.fullmatch(r"(.+\.py):([\w.]+)", place)
        if match is None:
            raise Invalid(f"{place!r} is not file.py:name", remedy="for example tomo.py:reconstruct")
        packed.append(pack_file(match[1], match[2]))
    with connected() as client:
        for p in packed:
            client.register(p)
    if json_:
        as_json([{"name": p.name, "id": p.id} for p in packed])
    else:
        for p in packed:
            say(f"{p.name}  {p.id}")
