"""`oncue deploy`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from oncue.cli import completing
from oncue.cli.connect import connected
from oncue.cli.output import as_json, json_option, say
from oncue.errors import Invalid
from oncue.resources import Deployed, DeployRequest, RuleFile


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", shell_complete=completing.files)
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@click.option("--label", default="", help="The deployment's name (default: the file's name); for one file only.")
@click.option("--note", default="", help="Kept in the history.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def deploy(files: tuple[str, ...], dry_run: bool, label: str, note: str, yes: bool, json_: bool) -> None:
    """Put rule files in force: all of them or none. Their tests run first, then the difference is shown.

    \b
    Example:
      oncue deploy beamline.yaml --dry-run
      oncue deploy beamline.yaml --yes --note "larger frames"
    """
    from oncue.cli.rule_files import pack_functions, read, run_tests, show_tests

    if label and len(files) > 1:
        raise Invalid("--label names one file's deployment", remedy="deploy the files one at a time")
    sets = read(files)
    show_tests(run_tests(sets))
    packed = pack_functions(sets)
    # Absolute: what is relative in a rule file is relative to it, wherever the server was started.
    rule_files = [RuleFile(label=label or Path(s.file).stem, text=s.text, path=os.path.abspath(s.file)) for s in sets]
    with connected() as client:
        for function in packed.values():
            client.register(function)
        request = DeployRequest(
            files=rule_files, functions={name: p.id for name, p in packed.items()}, dry_run=True, note=note
        )
        planned = client.rules.deploy(request)
        if not json_ or not dry_run:
            _show(planned, err=json_)
        changes = any(d.changed for d in planned)
        if dry_run or not changes:
            if json_:
                as_json(planned)
            return
        if not yes and sys.stdin.isatty():
            click.confirm("Deploy this?", abort=True, err=True)
        elif not yes:
            raise Invalid("nobody can be asked here", remedy="say --yes, or --dry-run")
        done = client.rules.deploy(
            DeployRequest(files=rule_files, functions=request.functions, dry_run=False, note=note)
        )
    if json_:
        as_json(done)
        return
    for d in done:
        say(f"{d.label}@{d.version} is in force" if d.changed else f"{d.label}@{d.version} is as it was")


def _show(planned: list[Deployed], err: bool) -> None:
    for d in planned:
        if not d.changed:
            say(f"{d.label}: no change", err=err)
            continue
        for word, names in (("new", d.added), ("changed", d.changed_rules), ("removed", d.removed)):
            if names:
                say(f"{d.label}: {word}: {', '.join(names)}", err=err)
        if d.diff:
            say(d.diff.rstrip("\n"), err=err)
