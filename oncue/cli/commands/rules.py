"""`oncue rules`."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import click

from oncue.cli import completers
from oncue.cli.client import connected, json_file
from oncue.cli.commands.deploy import ask, show_trigger
from oncue.cli.diff_output import changed_functions, show_functions
from oncue.cli.diff_output import show as show_difference
from oncue.cli.output import as_json, facts, json_option, listing, plain, say, when
from oncue.cli.stateful_output import remembered
from oncue.errors import Invalid, MissingExtra
from oncue.protocol.api import FunctionChange, RuleInfo
from oncue.protocol.records import origin


@click.group()
def rules() -> None:
    """Look at rules; test, explain and switch them.

    \b
    Example:
      oncue rules list
    """


@rules.command("list")
@json_option
def list_(json_: bool) -> None:
    """The rules in force, and how they are.

    \b
    Example:
      oncue rules list --json
    """
    head = ("NAME", "STATE", "ON", "RUNS", "ENDPOINT", "FIRED SINCE START", "WHY")
    with connected() as client:
        listing(client.rules.list(), json_, head, _row, "no rules: deploy some with `oncue deploy FILE`")


def _row(r: RuleInfo) -> tuple[Any, ...]:
    on = r.on if isinstance(r.on, str) else plain(r.on)
    return (r.name, r.state, on, ",".join(r.runs), r.endpoint, r.fired, "; ".join(filter(None, (r.why, remembered(r)))))


@rules.command()
@click.argument("name", shell_complete=completers.rules)
@json_option
def show(name: str, json_: bool) -> None:
    """One rule.

    \b
    Example:
      oncue rules show reconstruct
    """
    with connected() as client:
        r = client.rules.get(name)
    if json_:
        as_json(r)
        return
    facts(
        [("name", r.name), ("deployment", f"{r.label}@{r.version}"), ("state", r.state), ("why", r.why), ("on", r.on)]
    )
    facts([("memory", r.memory), ("now", remembered(r))])
    facts([("runs", ", ".join(r.runs)), ("endpoint", r.endpoint), ("fired since start", r.fired), ("text", r.text)])


@rules.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", shell_complete=completers.files)
@json_option
def test(files: tuple[str, ...], json_: bool) -> None:
    """Run the tests of rule files, offline, with the matcher of production; and see whether `args` fit the functions that are
    in files beside them.

    \b
    Example:
      oncue rules test beamline.yaml
    """
    from oncue.cli.rule_files import check_offline, read, run_tests, show_tests

    sets = read(files)
    tests = run_tests(sets)
    if json_:
        as_json(tests)
    show_tests(tests)
    check_offline(sets)
    if not tests:
        say("no tests in these files: a rule's go under `tests:`", err=True)


@rules.command()
@click.argument("rule", shell_complete=completers.rules)
@click.argument("event", shell_complete=completers.files)
@click.option(
    "--rules-file",
    shell_complete=completers.files,
    help="Explain by this file, offline, instead of by what is deployed.",
)
@json_option
def explain(rule: str, event: str, rules_file: str | None, json_: bool) -> None:
    """Why RULE fires for EVENT, or why not: its offset (see `oncue events list`), or a JSON file (- is stdin).

    \b
    Example:
      oncue rules explain reconstruct 17
      oncue rules explain reconstruct samples/scan.json
    """
    from oncue.cli.rule_files import explain_offline, show_steps

    if rules_file is not None:
        found = explain_offline(rule, json_file(event), rules_file)
    else:
        with connected() as client:
            if event.isdigit():
                found = client.rules.explain(rule, offset=int(event))
            else:
                found = client.rules.explain(rule, event=json_file(event))
    as_json(found) if json_ else show_steps(found)


@rules.command()
@click.argument("file", shell_complete=completers.files)
@click.option("--label", default="", help="The deployment to compare with (default: the file's name).")
@json_option
def diff(file: str, label: str, json_: bool) -> None:
    """What differs between FILE, with its functions, and what is deployed. Exit code 1 when something does.

    \b
    Example:
      oncue rules diff beamline.yaml
    """
    label = label or Path(file).stem
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise Invalid(f"{file} cannot be read: {e}", remedy="give the path of a rule file (YAML)") from None
    with connected() as client:
        newest: dict[str, Any] = max(client.rules.history(label), key=lambda d: d["version"])
        old, version = {} if newest["removed"] else newest, newest["version"]
        before = str(old.get("text", "")).splitlines()
        lines = list(difflib.unified_diff(before, text.splitlines(), f"{label}@{version}", file, lineterm=""))
        for line in () if json_ else lines:
            say(line)
        functions: list[FunctionChange] = []
        try:
            functions = changed_functions(client, file, old.get("functions", {}))
        except MissingExtra as e:
            say(f"its functions were not compared: {e}", err=True)
    changed = bool(lines or functions)
    if json_:
        found = {"label": label, "version": version, "changed": changed, "diff": "\n".join(lines)}
        as_json(found | {"functions": functions})
    else:
        show_functions(label, functions)
    if changed:
        raise SystemExit(1)


@rules.command()
@click.argument("label", shell_complete=completers.labels)
@json_option
def history(label: str, json_: bool) -> None:
    """All versions of a deployment.

    \b
    Example:
      oncue rules history beamline
    """
    head = ("VERSION", "AT", "BY", "STATE", "FROM", "NOTE")
    with connected() as client:
        listing(client.rules.history(label), json_, head, _version_row, f"{label} was never deployed")


def _version_row(d: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{d.get('label')}@{d.get('version')}",
        when(d.get("at_us", 0)),
        d.get("owner", ""),
        "removed" if d.get("removed") else "deployed",
        origin(d.get("host", ""), d.get("path", "")),
        d.get("note", ""),
    )


@rules.command()
@click.argument("label", shell_complete=completers.labels)
@click.argument("version", type=click.IntRange(1))
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def rollback(label: str, version: int, yes: bool, json_: bool) -> None:
    """Put an older version of a deployment in force again, as a new version: with its functions as they were then. The
    difference is shown first.

    \b
    Example:
      oncue rules rollback beamline 3 --yes
    """
    with connected() as client:
        show_difference(client.rules.rollback(label, version, dry_run=True), err=json_)
        if not yes:
            ask(f"Put version {version} of {label} in force again?", "say --yes")
        done = client.rules.rollback(label, version)
    as_json(done) if json_ else say(f"{done.label}@{done.version} is in force")
    for trigger in done.triggers:
        show_trigger(trigger, quiet=json_)


@rules.command()
@click.argument("name", shell_complete=completers.rules)
@click.option("--why", default="", help="Kept, and shown to those who ask.")
@json_option
def enable(name: str, why: str, json_: bool) -> None:
    """Let a rule fire again.

    \b
    Example:
      oncue rules enable reconstruct
    """
    with connected() as client:
        found = client.rules.enable(name, why)
    as_json(found) if json_ else say(f"{name} is {found.state}")


@rules.command()
@click.argument("name", shell_complete=completers.rules)
@click.option("--why", default="", help="Kept, and shown to those who ask.")
@json_option
def disable(name: str, why: str, json_: bool) -> None:
    """Keep a rule from firing.

    \b
    Example:
      oncue rules disable reconstruct --why "detector is being aligned"
    """
    with connected() as client:
        found = client.rules.disable(name, why)
    as_json(found) if json_ else say(f"{name} is {found.state}")


@rules.command()
@click.argument("label", shell_complete=completers.labels)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def remove(label: str, yes: bool, json_: bool) -> None:
    """Take all rules and triggers of a deployment out of force. Its history is kept.

    \b
    Example:
      oncue rules remove beamline --yes
    """
    if not yes:
        click.confirm(f"Remove all rules and triggers of {label}?", abort=True, err=json_)
    with connected() as client:
        done = client.rules.remove(label)
    if json_:
        as_json(done)
        return
    say(f"{label} is removed" + (f": {', '.join(done.removed)}" if done.removed else ""))
