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
from oncue.cli.tasks.run_options import (
    affinity_option,
    call_options,
    given_retry,
    priority_option,
    retry_option_flags,
    run_option_flags,
)
from oncue.cli.value_output import value_output
from oncue.cli.wait import await_end, print_id
from oncue.client import Client
from oncue.client.task import Task
from oncue.errors import Invalid, TaskFailed


def _packed(function: str) -> tuple[str, Any]:
    """Return (file, packed function) of FILE.py:NAME, else ("", its registered name).

    Raises Invalid if the function's name is missing.
    """
    if match := re.fullmatch(r"(.+\.py):([\w.]+)", function):
        from oncue.functions import pack_file

        with contextlib.redirect_stdout(sys.stderr):
            return match[1], pack_file(match[1], match[2])
    if function.endswith(".py"):
        raise Invalid(f"{function} is a file, and no function is named", remedy=f"add its name, as in {function}:NAME")
    return "", function


@contextlib.contextmanager
def _beside(file: str) -> Iterator[None]:
    """Make `file` importable while a value of one of its classes is unpickled.

    Its folder comes last on sys.path. Anything that the file prints goes to stderr.
    """
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
@click.argument("more", nargs=-1, metavar="")
@click.option(
    "--endpoint",
    default="local",
    show_default=True,
    shell_complete=completers.endpoints,
    help="Name or id of the endpoint that runs it.",
)
@click.option("--arg", "args", multiple=True, metavar="K=TEXT|K:=JSON", help="Keyword argument. Can be repeated.")
@run_option_flags
@affinity_option
@priority_option
@click.option("--wait/--no-wait", default=True, help="Wait for the result (the default), or print the task's id.")
@click.option("--timeout", metavar="DURATION", help="Stop the function after this time, such as 5m.")
@click.option("--expires", metavar="DURATION", help="Drop the task if it has not started after this time.")
@retry_option_flags
@json_option
def invoke(
    function: str,
    more: tuple[str, ...],
    endpoint: str,
    args: tuple[str, ...],
    sandbox: str,
    outputs: tuple[str, ...],
    resources: tuple[str, ...],
    affinity: str,
    priority: str,
    wait: bool,
    timeout: str | None,
    expires: str | None,
    retries: int | None,
    retry_on: tuple[str, ...],
    retry_never: tuple[str, ...],
    retry_max_age: str | None,
    json_: bool,
) -> None:
    """Run a function now.

    FUNCTION is file.py:name, or a registered function: its name, name@version, or content hash.

    \b
    Example:
      oncue invoke tomo.py:reconstruct --arg path=/data/scan_1.h5 --arg angles:='[0, 90]'
      oncue invoke reconstruct --endpoint polaris --no-wait
    """
    if more:
        text = f"{more[0]!r} is not an option; an argument of the function is one with --arg"
        raise Invalid(text, remedy=f"--arg {more[0] if '=' in more[0] else 'NAME=' + more[0]} (a text), or NAME:=JSON")
    given = arguments(args)
    with connected() as client:
        file, name = _packed(function)
        bound = client.with_options(
            endpoint=endpoint,
            timeout=seconds(timeout),
            expires=seconds(expires),
            retry=given_retry(retries, retry_on, retry_never, seconds(retry_max_age)),
            **call_options(resources, sandbox, outputs, affinity, priority),
        )
        # Not as keyword arguments: a parameter may have the name of an option.
        task: Task[Any] = client.call(name, (), given, bound.options)
        task._wait_accepted()
        if not wait:
            return print_id(task, json_)
        _show_end(client, task, file, json_)


def _show_end(client: Client, task: Task[Any], file: str, json_: bool) -> None:
    """Wait for the task; print its output and value, or raise its error."""
    error = await_end(client, task)
    info = task.info()
    with _beside(file):
        value = value_output(task, info)
    if json_:
        as_json(msgspec.structs.replace(info, value=value.json))
    elif info.output:
        say(info.output.rstrip("\n"), err=True)
    if isinstance(error, SystemExit) and type(error.code) is int and error.code:
        say(str(error.__cause__), err=True)
        sys.exit(error.code)  # as the function's program would
    if error is not None:
        raise error.__cause__ if isinstance(error.__cause__, TaskFailed) else error
    if json_:
        return
    if value.text:
        say(value.text)
    if value.why_not:
        say(f"({value.why_not})", err=True)
    if sys.stdout.isatty():
        facts([("task", task.id)])
