"""Options of commands that run tasks: resources, sandbox, outputs, affinity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from oncue.errors import Invalid

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


affinity_option = click.option(
    "--affinity", default="", metavar="KEY", help="Tasks with the same key prefer the worker that had it."
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


def call_options(resources: Sequence[str], sandbox: str, outputs: Sequence[str], affinity: str) -> dict[str, Any]:
    """Return the options of a call. Raises Invalid."""
    return {
        "resources": given_resources(resources),
        "sandbox": sandbox_of(sandbox),
        "outputs": outputs,
        "affinity": affinity,
    }
