"""`oncue deploy`."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import click
import msgspec

from oncue.cli import completers
from oncue.cli.client import connected
from oncue.cli.deploying.python_rules import written_lines
from oncue.cli.deploying.values import values_of, values_options
from oncue.cli.diff_output import show
from oncue.cli.output import as_json, json_option, say
from oncue.cli.rule_state import show_warnings
from oncue.errors import Invalid
from oncue.protocol.api import Deployed, TriggerInfo
from oncue.protocol.records import origin


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE|DIR...", shell_complete=completers.files)
@click.option("--dry-run", is_flag=True, help="Show the changes and deploy nothing.")
@click.option(
    "--label",
    default="",
    help="Name of the deployment (default: the file's name). For several files and directories, the owner's name before "
    "each: LABEL/NAME.",
)
@click.option("--prune", is_flag=True, help="Remove what --label owns and these files no longer have.")
@values_options
@click.option("--note", default="", help="Note for the history.")
@click.option("--replace", is_flag=True, help="Replace a deployment of this name that came from another file.")
@click.option("--yes", is_flag=True, help="Deploy without asking.")
@json_option
def deploy(
    files: tuple[str, ...],
    dry_run: bool,
    label: str,
    prune: bool,
    set_: tuple[str, ...],
    env: tuple[str, ...],
    note: str,
    replace: bool,
    yes: bool,
    json_: bool,
) -> None:
    """Deploy rule files, all or none.

    First runs the tests in the files, then shows the changes and asks. A directory is all rule
    files below it.

    \b
    Example:
      oncue deploy beamline.yaml --dry-run
      oncue deploy beamline.yaml --yes --note "larger frames"
      oncue deploy rules/ --label 2bm --prune --env prod.yaml --set threshold:=5
    """
    from oncue.cli.deploying.request import prepare

    request, packed, paths = prepare(files, label, values_of(set_, env), prune=prune, note=note, replace=replace)
    here = {f.label: origin(f.host, f.path) for f in request.files}
    with connected() as client:
        for function in packed.values():
            client.register(function)
        with written_lines({name: paths[f.label] for f in request.files for name in (f.label, f.path)}):
            planned = client.rules.deploy(request)
        if not json_ or not dry_run:
            _show(planned, here, err=json_)
        changes = any(d.changed for d in planned)
        if dry_run:
            if json_:
                as_json(planned)
            return
        clash = not replace and any(d.replaces for d in planned)
        if changes and not yes:
            ask("Replace the other file?" if clash else "Deploy this?")
        # With --yes alone the server refuses a clash, and its error says what to do. Without
        # changes the request is sent as well, for the state of the triggers.
        done = client.rules.deploy(
            msgspec.structs.replace(request, dry_run=False, replace=replace or (clash and not yes))
        )
    if json_:
        as_json(done)
    elif changes:
        for d in done:
            state = "is removed" if d.pruned else "is in force" if d.changed else "is as it was"
            say(f"{d.label}@{d.version} {state}")
    for trigger in (t for d in done for t in d.triggers):
        show_trigger(trigger, quiet=json_)
    for waits in dict.fromkeys(d.waits for d in done if d.waits):
        say(waits, err=True)


def show_trigger(t: TriggerInfo, quiet: bool = False) -> None:
    """Print if new items fire from now on.

    A trigger that does not run is reported on stderr.
    """
    if not t.looked:
        problem = "cannot scan" if t.state == "failed" else "has not finished its initial scan"
        say(
            f"trigger {t.name} {problem}: {t.detail or t.state}\n"
            "  it goes on trying; until the scan is done, files that changed (ctime) after this deploy are new."
            " See: oncue triggers list",
            err=True,
        )
    elif t.state != "running":
        say(f"trigger {t.name} is {t.state}: {t.detail}", err=True)
    elif t.existing and not quiet:
        say(f"trigger {t.name} runs; {t.existing:,} existing files fire only when they change")


def ask(question: str, remedy: str = "give --yes (and --replace, to replace another file), or --dry-run") -> None:
    """Ask a yes/no question.

    Raises Invalid if stdin is not a terminal, Abort on no.
    """
    if not sys.stdin.isatty():
        raise Invalid("this needs a confirmation, and stdin is not a terminal", remedy=remedy)
    click.confirm(question, abort=True, err=True)


def _show(planned: list[Deployed], here: Mapping[str, str], err: bool) -> None:
    for d in planned:
        if d.pruned:
            say(f"{d.label}: removed as a whole, since no file has it any more: {', '.join(d.removed)}", err=err)
            continue
        if d.replaces:
            say(f"{d.label}: ANOTHER FILE has this name: {d.replaces} is deployed, this is {here[d.label]}", err=err)
        show_warnings(here[d.label].partition(":")[2] or d.label, d.warnings)
        if not d.changed:
            say(f"{d.label}: no change", err=err)
            continue
        show(d, err=err)
