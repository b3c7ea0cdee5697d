"""`oncue functions`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from oncue.cli import completers
from oncue.cli.client import connected
from oncue.cli.command_group import Group
from oncue.cli.output import as_json, facts, json_option, listing, say, when
from oncue.cli.tasks.run_options import given_resources, run_option_flags, sandbox_of
from oncue.protocol.api import FunctionInfo, PropertiesInfo
from oncue.protocol.stated_options import run_options
from oncue.quantities import duration_text, size_text


@click.group(cls=Group)
def functions() -> None:
    """List, inspect and register functions.

    \b
    Example:
      oncue functions list
    """


@functions.command("list")
@click.option("-n", "--limit", type=click.IntRange(1), default=100, show_default=True, help="List at most so many.")
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
    facts([*pairs, ("bytes", f.size_bytes), *(_properties(f.properties) if f.properties else ()), *more])


def _properties(p: PropertiesInfo) -> list[tuple[str, Any]]:
    """Return lines on how the function's tasks are run."""
    yes = "yes: each task in a process that has run nothing else"
    resources = {k: size_text(v) if k == "memory_bytes" else duration_text(v) if k == "walltime_ms" else v
                 for k, v in p.resources.items()}  # fmt: skip
    return [
        ("fresh", p.fresh and yes),
        ("memory", p.memory_bytes and size_text(p.memory_bytes)),
        ("detached", p.detached and "yes: child processes may outlive the task"),
        ("files", ", ".join(p.files)),
        ("resources", ", ".join(f"{k.rpartition('_')[0] or k} {v}" for k, v in resources.items())),
        ("sandbox", p.sandbox and "yes: each task has a folder of its own"),
        ("outputs", ", ".join(p.outputs)),
    ]


@functions.command()
@click.argument("places", nargs=-1, required=True, metavar="FILE.PY:NAME...", shell_complete=completers.files)
@click.option("--fresh", is_flag=True, help="Run each task in a process that has run nothing else.")
@click.option("--memory", metavar="SIZE", default="0", help="End tasks that use more, as in 2GB.")
@click.option("--detached", is_flag=True, help="Let child processes outlive their task.")
@click.option(
    "--file",
    "files",
    multiple=True,
    metavar="PATH",
    help="Data file, compiled module, folder or glob that travels with them. Can be repeated.",
)
@run_option_flags
@json_option
def register(
    places: tuple[str, ...],
    fresh: bool,
    memory: str,
    detached: bool,
    files: tuple[str, ...],
    sandbox: str,
    outputs: tuple[str, ...],
    resources: tuple[str, ...],
    json_: bool,
) -> None:
    """Register functions from Python files.

    Repeating it with the same content changes nothing. Options are added to those of
    @oncue.function in the file.

    \b
    Example:
      oncue functions register tomo.py:reconstruct
    """
    from oncue.functions import options_of, pack_file, split_place

    here = [str(path.absolute()) if (path := Path(f)).exists() else f for f in files]
    options = options_of(fresh=fresh, memory=memory, detached=detached, files=here).with_run(
        run_options(given_resources(resources), sandbox_of(sandbox), outputs)
    )
    packed = [pack_file(*split_place(place), options) for place in places]
    with connected() as client:
        for p in packed:
            client.register(p)
    if json_:
        as_json([{"name": p.name, "id": p.id} for p in packed])
    else:
        for p in packed:
            say(f"{p.name}  {p.id}")
