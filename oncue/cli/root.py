"""The tree of commands: a table of names, so that showing help imports none of them."""

from __future__ import annotations

from importlib import import_module

import click

COMMANDS: dict[str, tuple[str, str, str]] = {
    # name: (module in oncue.cli.commands, attribute, what it does)
    "up": ("up", "up", "Start a server here, with an endpoint for this machine."),
    "down": ("down", "down", "Stop the server that runs here."),
    "stream": ("stream", "stream", "Run rules with memory beside the servers (log on Kafka)."),
    "demo": ("demo", "demo", "See it work: frames arrive, functions run."),
    "invoke": ("invoke", "invoke", "Run a function now."),
    "deploy": ("deploy", "deploy", "Put rule files in force."),
    "tasks": ("tasks", "tasks", "Look at tasks; cancel and retry them."),
    "events": ("events", "events", "Look at events; send them."),
    "functions": ("functions", "functions", "Look at functions; register them."),
    "rules": ("rules", "rules", "Look at rules; test, explain and switch them."),
    "triggers": ("triggers", "triggers", "Look at the sources of events."),
    "endpoints": ("endpoints", "endpoints", "Look at endpoints; revoke them."),
    "endpoint": ("endpoint", "endpoint", "On an endpoint's machine: register, start and stop its agent."),
    "dead": ("dead", "dead", "Look at what could not go on, and why; retry or dismiss it."),
    "tokens": ("tokens", "tokens", "Make, list and revoke tokens."),
    "doctor": ("doctor", "doctor", "Check this machine and its server."),
    "completion": ("completion", "completion", "Print the shell's completion script."),
}


class Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[name]
        command: click.Command = getattr(import_module(f"oncue.cli.commands.{module}"), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"there is no command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, what) for name, (_, _, what) in COMMANDS.items()])


def _version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from oncue import __version__

        click.echo(f"oncue {__version__}")
        ctx.exit()


@click.command(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def root() -> None:
    """oncue runs your Python functions on cue: when a file has arrived, a webhook was called, or you ask.

    \b
    Example:
      oncue up --detach
      oncue invoke tomo.py:reconstruct --arg path=/data/scan_1.h5
    """
