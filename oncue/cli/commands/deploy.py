"""`oncue deploy`."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import click
import msgspec

from oncue.cli import completers
from oncue.cli.client import connected
from oncue.cli.diff_output import show
from oncue.cli.output import as_json, json_option, say
from oncue.errors import Invalid
from oncue.protocol.api import Deployed, DeployRequest, RuleFile, TriggerInfo
from oncue.protocol.records import origin


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", shell_complete=completers.files)
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@click.option("--label", default="", help="The deployment's name (default: the file's name); for one file only.")
@click.option("--note", default="", help="Kept in the history.")
@click.option("--replace", is_flag=True, help="Also where a file from another place has this name.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def deploy(files: tuple[str, ...], dry_run: bool, label: str, note: str, replace: bool, yes: bool, json_: bool) -> None:
    """Put rule files in force: all of them or none. Their tests run first, then the difference is shown.

    \b
    Example:
      oncue deploy beamline.yaml --dry-run
      oncue deploy beamline.yaml --yes --note "larger frames"
    """
    from oncue.cli.rule_files import check_packed, pack_functions, read, run_tests, show_tests

    if label and len(files) > 1:
        raise Invalid("--label names one file's deployment", remedy="deploy the files one at a time")
    sets = read(files)
    show_tests(run_tests(sets))
    packed = pack_functions(sets)
    check_packed(sets, packed)
    # Absolute: what is relative in a rule file is relative to it, wherever the server was started.
    host = socket.gethostname()
    rule_files = [
        RuleFile(label=label or Path(s.file).stem, text=s.text, path=os.path.abspath(s.file), host=host) for s in sets
    ]
    with connected() as client:
        for function in packed.values():
            client.register(function)
        request = DeployRequest(
            files=rule_files,
            functions={name: p.id for name, p in packed.items()},
            dry_run=True,
            note=note,
            replace=replace,
        )
        planned = client.rules.deploy(request)
        if not json_ or not dry_run:
            _show(planned, {f.label: origin(f.host, f.path) for f in rule_files}, err=json_)
        changes = any(d.changed for d in planned)
        if dry_run:
            if json_:
                as_json(planned)
            return
        clash = not replace and any(d.replaces for d in planned)
        if changes and not yes:
            ask("Put it in the place of the other file?" if clash else "Deploy this?")
        # With --yes alone the server refuses a clash, and says what to do. Where nothing changes, it is asked as well:
        # how its triggers are.
        done = client.rules.deploy(
            msgspec.structs.replace(request, dry_run=False, replace=replace or (clash and not yes))
        )
    if json_:
        as_json(done)
    elif changes:
        for d in done:
            say(f"{d.label}@{d.version} is in force" if d.changed else f"{d.label}@{d.version} is as it was")
    for trigger in (t for d in done for t in d.triggers):
        show_trigger(trigger, quiet=json_)
    for waits in dict.fromkeys(d.waits for d in done if d.waits):
        say(waits, err=True)


def show_trigger(t: TriggerInfo, quiet: bool = False) -> None:
    """Print the state of a deployed trigger; one that does not run goes to stderr."""
    if not t.looked:
        stuck = "cannot scan its source" if t.state == "failed" else "has not ended its initial scan"
        say(
            f"trigger {t.name} {stuck}: {t.detail or t.state}\n  it goes on; until the scan has ended, a file counts"
            " as new if it changed (ctime) after this deploy. `oncue triggers list` shows its state",
            err=True,
        )
    elif t.state != "running":
        say(f"trigger {t.name} is {t.state}: {t.detail}", err=True)
    elif t.existing and not quiet:
        say(f"trigger {t.name} runs; {t.existing:,} files are old: they fire only when they change")


def ask(question: str, remedy: str = "say --yes (and --replace, for another file's name), or --dry-run") -> None:
    """Raises Invalid when there is nobody to ask."""
    if not sys.stdin.isatty():
        raise Invalid("nobody can be asked here", remedy=remedy)
    click.confirm(question, abort=True, err=True)


def _show(planned: list[Deployed], here: Mapping[str, str], err: bool) -> None:
    for d in planned:
        if d.replaces:
            say(f"{d.label}: ANOTHER FILE has this name: {d.replaces} is in force, this is {here[d.label]}", err=err)
        if not d.changed:
            say(f"{d.label}: no change", err=err)
            continue
        show(d, err=err)
