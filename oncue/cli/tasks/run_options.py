"""Options of commands that run tasks: resources, sandbox, retries, affinity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from oncue.client import Retry
from oncue.errors import Invalid
from oncue.protocol.priority import PRIORITY_WORDS

C = TypeVar("C", bound=Callable[..., Any])


def run_option_flags(command: C) -> C:
    """Add --resource, --sandbox and --output to a command."""
    for option in (
        click.option(
            "--output", "outputs", multiple=True, metavar="GLOB", help="Files that come back. Can be repeated."
        ),
        click.option(
            "--sandbox",
            type=click.Choice(["yes", "no", "keep"]),
            default="no",
            help="Run it in a folder of its own; keep: the folder stays if it fails.",
        ),
        click.option(
            "--resource",
            "resources",
            multiple=True,
            metavar="NAME=N",
            help="What it needs: cores=4, memory=8GB, gpus=1, nodes, ranks, walltime=2h. Can be repeated.",
        ),
    ):
        command = option(command)
    return command


def retry_option_flags(command: C) -> C:
    """Add --retries, --retry-on, --retry-never and --retry-max-age to a command."""
    for option in (
        click.option("--retry-max-age", metavar="DURATION", help="Retry no more after this time since its acceptance."),
        click.option("--retry-never", multiple=True, metavar="END", help="Never retry this end. Can be repeated."),
        click.option(
            "--retry-on",
            multiple=True,
            metavar="END",
            help="Retry these ends: lost, error (both the default), timeout, exit:75, ValueError. Can be repeated.",
        ),
        click.option("--retries", type=click.IntRange(0), help="Retry so many times if it fails or is lost."),
    ):
        command = option(command)
    return command


def given_retry(
    retries: int | None, on: Sequence[str], never: Sequence[str], max_age: float | None
) -> Retry | int | None:
    """Return the retry policy of the options; None without one."""
    if not (on or never or max_age):
        return retries or None
    return Retry(max=3 if retries is None else retries, on=tuple(on) or Retry().on, never=tuple(never), max_age=max_age)


affinity_option = click.option(
    "--affinity", default="", metavar="KEY", help="Tasks with the same key prefer the worker that had it."
)

priority_option = click.option(
    "--priority", type=click.Choice(PRIORITY_WORDS), default="normal", help="Which waiting tasks go first."
)


def given_resources(given: Sequence[str]) -> dict[str, int | str]:
    """Return the values of --resource. Raises Invalid."""
    found: dict[str, int | str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise Invalid(f"--resource {text!r} is not NAME=N", remedy="for example --resource cores=4")
        found[name] = int(value) if value.isdigit() else value
    return found


def sandbox_of(choice: str) -> bool | str:
    """Return the value of --sandbox as a call states it."""
    return choice if choice == "keep" else choice == "yes"


def call_options(
    resources: Sequence[str], sandbox: str, outputs: Sequence[str], affinity: str, priority: str
) -> dict[str, Any]:
    """Return the options of a call. Raises Invalid."""
    return {
        "resources": given_resources(resources),
        "sandbox": sandbox_of(sandbox),
        "outputs": outputs,
        "affinity": affinity,
        "priority": priority,
    }
