"""Command tree as a table of names: `oncue --help` imports no command."""

from __future__ import annotations

from importlib import import_module

import click

COMMANDS: dict[str, tuple[str, str, str]] = {
    # name: (module in oncue.cli.commands, attribute, help)
    "up": ("up", "up", "Start a server and an endpoint on this machine."),
    "down": ("down", "down", "Stop the server on this machine."),
    "stream": ("stream", "stream", "Run stateful rules beside the servers (log on Kafka)."),
    "demo": ("demo", "demo", "Run the demo: frames arrive, functions run."),
    "status": ("status", "status", "Show what runs, waits and failed, why, and what to do."),
    "invoke": ("invoke", "invoke", "Run a function now."),
    "shell": ("shell", "shell", "Run a shell script on an endpoint now."),
    "deploy": ("deploy", "deploy", "Deploy rule files."),
    "tasks": ("tasks", "tasks", "List, inspect, cancel and retry tasks."),
    "logs": ("tasks", "logs", "Print the output of a task."),
    "events": ("events", "events", "List, inspect and send events."),
    "trace": ("trace", "trace", "Show all that followed from an event."),
    "replay": ("reporting.replay", "replay", "Let rules see stored events again."),
    "report": ("reporting.report", "report", "Account for all events: done, failed, waiting, missing."),
    "functions": ("functions", "functions", "List, inspect and register functions."),
    "rules": ("rules", "rules", "List, test, explain, enable and disable rules."),
    "schema": ("schema", "schema", "Print the JSON Schema of rule files, for editors."),
    "triggers": ("triggers", "triggers", "List and explain triggers, the sources of events."),
    "endpoints": ("endpoints", "endpoints", "List, inspect and revoke endpoints."),
    "endpoint": ("endpoint", "endpoint", "Set up, start and stop an endpoint on this machine."),
    "dead": ("dead", "dead", "List, retry and dismiss events that could not be processed."),
    "tokens": ("tokens", "tokens", "Create, list and revoke tokens."),
    "history": ("history", "history", "Export events and tasks to a SQLite file, and query it."),
    "backup": ("backup", "backup", "Back up a server's data folder, while it runs."),
    "restore": ("restore", "restore", "Restore a backup to a data folder."),
    "doctor": ("doctor", "doctor", "Check this machine, the log and the server."),
    "completion": ("completion", "completion", "Print the completion script of a shell."),
}


class LazyGroup(click.Group):
    """Command group that imports a command's module when the command is used."""

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
            from oncue.cli.command_group import nearest

            ctx.fail(f"there is no command {args[0]!r}.{nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


def _version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from oncue import __version__

        click.echo(f"oncue {__version__}")
        ctx.exit()


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-V", "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version."
)
def root() -> None:
    """Run Python functions when a file arrives, on a webhook call, or on demand.

    \b
    Example:
      oncue up --detach
      oncue invoke tomo.py:reconstruct --arg path=/data/scan_1.h5
    """
