"""`oncue completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from oncue.cli.root import root
from oncue.errors import Invalid


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL.

    New shells then complete commands and names.

    \b
    Example:
      oncue completion bash > ~/.local/share/bash-completion/completions/oncue
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise Invalid(f"there is no completion for {shell}")
    click.echo(kind(root, {}, "oncue", "_ONCUE_COMPLETE").source())
