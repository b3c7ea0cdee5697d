"""`oncue shell`."""

from __future__ import annotations

import sys

import click
import msgspec

from oncue.cli import completers
from oncue.cli.client import arguments, connected, seconds
from oncue.cli.output import as_json, json_option, safe, say
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
from oncue.client.files import ShellResult
from oncue.client.task import Task
from oncue.errors import Invalid, ShellFailed


@click.command()
@click.argument("script")
@click.option(
    "--endpoint",
    default="local",
    show_default=True,
    shell_complete=completers.endpoints,
    help="Name or id of the endpoint that runs it.",
)
@click.option("--arg", "args", multiple=True, metavar="K=TEXT|K:=JSON", help="Value of ${K}. Can be repeated.")
@click.option("--env", "variables", multiple=True, metavar="NAME=TEXT", help="Environment variable. Can be repeated.")
@click.option("--cwd", default="", help="Working directory, on the endpoint.")
@click.option("--interpreter", default="", help="Shell that runs it (default: bash, else sh).")
@run_option_flags
@affinity_option
@priority_option
@click.option("--follow/--no-follow", "-f", default=True, help="Print its output while it runs (the default).")
@click.option("--wait/--no-wait", default=True, help="Wait for its end (the default), or print the task's id.")
@click.option("--timeout", metavar="DURATION", help="Stop it after this time, such as 5m.")
@retry_option_flags
@json_option
def shell(
    script: str,
    endpoint: str,
    args: tuple[str, ...],
    variables: tuple[str, ...],
    cwd: str,
    interpreter: str,
    sandbox: str,
    outputs: tuple[str, ...],
    resources: tuple[str, ...],
    affinity: str,
    priority: str,
    follow: bool,
    wait: bool,
    timeout: str | None,
    retries: int | None,
    retry_on: tuple[str, ...],
    retry_never: tuple[str, ...],
    retry_max_age: str | None,
    json_: bool,
) -> None:
    """Run a shell script on an endpoint.

    ${K} in it is the value of --arg K=...: always one word, never code. Its output is printed, and
    its exit code is that of this command.

    \b
    Example:
      oncue shell 'wc -l ${path}' --arg path=/data/a.txt
      oncue shell 'make -C ${dir}' --arg dir=/src --endpoint polaris --resource cores=8
    """
    from oncue.functions.shell import pack

    values = arguments(args)
    function = pack.shell(script, env=dict(map(_variable, variables)), cwd=cwd, interpreter=interpreter)
    if unused := sorted(set(values) - pack.used_names(function, values)):
        raise Invalid(f"the script does not use {unused[0]!r}", remedy=f"write ${{{unused[0]}}} in it")
    with connected() as client:
        bound = client.with_options(
            endpoint=endpoint,
            timeout=seconds(timeout),
            retry=given_retry(retries, retry_on, retry_never, seconds(retry_max_age)),
            **call_options(resources, sandbox, outputs, affinity, priority),
        )
        task: Task[ShellResult] = client.call(function, (), values, bound.options)
        task._wait_accepted()
        if not wait:
            return print_id(task, json_)
        if follow and not json_:
            for part in client.tasks.logs(task.id, follow=True):
                click.echo(safe(part, lines=True), nl=False)
        error = await_end(client, task)
        info = task.info()
        if json_:
            as_json(msgspec.structs.replace(info, value=value_output(task, info).json))
        elif not follow:
            say(info.output.rstrip("\n"))
        _end(error, json_)


def _end(error: BaseException | None, json_: bool) -> None:
    """Exit as the script did."""
    if isinstance(error, ShellFailed):
        if not json_:
            say(error.message, err=True)
        sys.exit(error.returncode)
    if error is not None:
        raise error


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise Invalid(f"--env {text!r} is not NAME=TEXT", remedy="for example --env OMP_NUM_THREADS=4")
    return name, value
