"""`oncue demo`."""

from __future__ import annotations

import click


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo(arguments: tuple[str, ...]) -> None:
    """Run the demo: a simulated detector writes frames, rules fire, functions run.

    \b
    Example:
      oncue demo
    """
    from importlib import import_module

    main = import_module("oncue.demo").main
    main(list(arguments)) if arguments else main()
