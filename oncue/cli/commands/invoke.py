"""`oncue invoke`."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Any

import click
import msgspec

from oncue.cli import completers
from oncue.cli.client import arguments, connected, seconds
from oncue.cli.output import as_json, facts, json_option, say
from oncue.cli.value_output import shown
from oncue.cli.wait import await_end
from oncue.client.task import Task
from oncue.errors import Invalid


@contextlib.contextmanager
def _beside(file: str) -> Iterator[None]:
    """Where a value of a class of this file is made again: the file is found by its name, last of all, and what it prints is
    not the command's answer."""
    if not file:
        yield
        return
    from oncue.functions import import_root

    root = str(import_root(file))
    sys.path.append(root)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.path.remove(root)


@click.command()
@click.argument("function", shell_complete=completers.functions_or_files)
@click.option(
    "--endpoint",
    default="local",
    show_default=True,
    shell_complete=completers.endpoints,
    help="Where it runs: an endpoint's name or id.",
)
@click.option("--arg", "args", multiple=True, metavar="K=TEXT|K:=JSON", help="A keyword argument; may be repeated.")
@click.option("--wait/--no-wait", default=True, help="Wait for the outcome (the default), or print the task's id.")
@click.option("--timeout", metavar="DURATION", help="Stop the function after so long, for example 5m.")
@click.option("--expires", metavar="DURATION", help="Give up if it has not started by then.")
@click.option("--retries", type=click.IntRange(0), default=0, help="Retries when it fails or is lost.")
@json_option
def invoke(
    function: str,
    endpoint: str,
    args: tuple[str, ...],
    wait: bool,
    timeout: str | None,
    expires: str | None,
    retries: int,
    json_: bool,
) -> None:
    """Run a function now. FUNCTION is file.py:name, or the name (name@version, hash) of a registered one.

    \b
    Example:
      oncue invoke tomo.py:reconstruct --arg path=/data/scan_1.h5 --arg angles:='[0, 90]'
      oncue invoke reconstruct --endpoint polaris --no-wait
    """
    given = arguments(args)
    with connected() as client:
        name: Any = function
        if match := re.fullmatch(r"(.+\.py):([\w.]+)", function):
            from oncue.functions import pack_file

            with contextlib.redirect_stdout(sys.stderr):
                name = pack_file(match[1], match[2])
        elif function.endswith(".py"):
            raise Invalid(
                f"{function} names a file, and not which function of it", remedy=f"add :NAME, as in {function}:NAME"
            )
        bound = client.with_options(
            endpoint=endpoint, timeout=seconds(timeout), expires=seconds(expires), retry=retries or None
        )
        task: Task[Any] = client.call(name, (), given, bound.options)  # (a parameter may be named as an option)
        task._wait_accepted()
        if not wait:
            if json_:
                as_json({"id": task.id})
            else:
                click.echo(task.id)
            return
        error = await_end(client, task)
        info = task.info()
        with _beside(match[1] if match else ""):
            value = shown(task, info)
        if json_:
            as_json(msgspec.structs.replace(info, value=value.json))
        elif info.output:
            say(info.output.rstrip("\n"), err=True)
        if error is not None:
            raise error
        if json_:
            return
        if value.text:
            say(value.text)
        if value.why_not:
            say(f"({value.why_not})", err=True)
        if sys.stdout.isatty():
            facts([("task", task.id)])
