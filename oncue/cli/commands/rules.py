"""`oncue rules`."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import click

from oncue.cli import completers
from oncue.cli.client import connected, json_file
from oncue.cli.command_group import Group
from oncue.cli.commands.deploy import ask, show_trigger
from oncue.cli.commands.reporting.coverage import coverage
from oncue.cli.commands.reporting.simulate import simulate
from oncue.cli.deploying.paths import labelled_files
from oncue.cli.deploying.values import values_of, values_options
from oncue.cli.diff_output import changed_functions, show_functions
from oncue.cli.diff_output import show as show_difference
from oncue.cli.output import as_json, facts, json_option, listing, plain, say, when
from oncue.cli.rule_state import state_text, unevaluated_text, used_text
from oncue.cli.tasks.ids import may_be_task, whole_id
from oncue.errors import Invalid, MissingExtra
from oncue.extras import need
from oncue.protocol.api import FunctionChange, RuleInfo
from oncue.protocol.records import origin


@click.group(cls=Group)
def rules() -> None:
    """List, test, explain, enable and disable rules.

    \b
    Example:
      oncue rules list
    """


@rules.command("list")
@json_option
def list_(json_: bool) -> None:
    """List the deployed rules and their states.

    \b
    Example:
      oncue rules list --json
    """
    head = ("NAME", "STATE", "ON", "RUNS", "ENDPOINT", "FIRED SINCE START", "WHY")
    with connected() as client:
        listing(client.rules.list(), json_, head, _row, "no rules: deploy some with `oncue deploy FILE`")


def _row(r: RuleInfo) -> tuple[Any, ...]:
    on = r.on if isinstance(r.on, str) else "" if r.on is None else plain(r.on)
    why = "; ".join(filter(None, (r.why, state_text(r), unevaluated_text(r))))
    return (r.name, r.state, on, ",".join(r.runs), r.endpoint, r.fired, why)


@rules.command()
@click.argument("name", shell_complete=completers.rules)
@json_option
def show(name: str, json_: bool) -> None:
    """Show one rule: its trigger, functions and state.

    \b
    Example:
      oncue rules show reconstruct
    """
    with connected() as client:
        r = client.rules.get(name)
    if json_:
        as_json(r)
        return
    origin = [("name", r.name), ("deployment", f"{r.label}@{r.version}"), ("state", r.state), ("why", r.why)]
    memory = [("on", r.on), ("memory", r.memory), ("now", state_text(r)), *(("waits", text) for text in r.waits)]
    counts = [("fired since start", r.fired), ("not evaluated", unevaluated_text(r))]
    facts([*origin, *memory, ("runs", ", ".join(r.runs)), ("endpoint", r.endpoint), *counts, ("used", used_text(r))])


@rules.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", shell_complete=completers.files)
@values_options
@json_option
def test(files: tuple[str, ...], set_: tuple[str, ...], env: tuple[str, ...], json_: bool) -> None:
    """Run the tests in rule files and directories, without a server.

    The tests use the same matching code as the server. `args` are checked against the functions in
    the Python files beside the rules.

    \b
    Example:
      oncue rules test beamline.yaml
    """
    from oncue.cli.rule_files import check_offline, read, run_tests, show_tests, warn_offline

    sets = read([file.path for file in labelled_files(files, "")], values_of(set_, env))
    tests = run_tests(sets)
    if json_:
        as_json(tests)
    show_tests(tests)
    check_offline(sets)
    warn_offline(sets)
    if not tests:
        say("no tests in these files: add them to a rule under `tests:`", err=True)


@rules.command()
@click.argument("rule", shell_complete=completers.rules)
@click.argument("event", shell_complete=completers.files)
@click.option(
    "--rules-file",
    shell_complete=completers.files,
    help="Explain with the rules of this file, without a server, instead of the deployed ones.",
)
@json_option
def explain(rule: str, event: str, rules_file: str | None, json_: bool) -> None:
    """Explain why RULE fires for EVENT, or does not.

    EVENT is an offset (see `oncue events list`), a JSON file (- is stdin), or the id of a task, for
    its outcome.

    \b
    Example:
      oncue rules explain reconstruct 17
      oncue rules explain publish 0192f0c1e5a0
      oncue rules explain reconstruct samples/scan.json
    """
    from oncue.cli.rule_files import explain_offline, show_steps

    if rules_file is not None:
        found = explain_offline(rule, json_file(event), rules_file)
    else:
        with connected() as client:
            if event.isdigit():
                found = client.rules.explain(rule, offset=int(event))
            elif may_be_task(event) and not Path(event).exists():
                found = client.rules.explain(rule, task=whole_id(client, event))
            else:
                found = client.rules.explain(rule, event=json_file(event))
    as_json(found) if json_ else show_steps(found)


@rules.command()
@click.argument("file", shell_complete=completers.files)
@click.option("--label", default="", help="Deployment to compare with (default: the file's name).")
@values_options
@json_option
def diff(file: str, label: str, set_: tuple[str, ...], env: tuple[str, ...], json_: bool) -> None:
    """Show the changes from the deployed rules and functions to those of FILE.

    Exit code 1 if there are changes.

    \b
    Example:
      oncue rules diff beamline.yaml
    """
    from oncue.cli.rule_files import text_of

    label = label or Path(file).stem
    values = values_of(set_, env)
    filled = text_of(file, values)
    try:
        text = filled if isinstance(filled, str) else filled.decode()
    except UnicodeDecodeError as e:
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
            functions = changed_functions(client, file, old.get("functions", {}), values)
        except MissingExtra as e:
            say(f"functions were not compared: {e}", err=True)
    changed = bool(lines or functions)
    if json_:
        answer = {"label": label, "version": version, "changed": changed, "diff": "\n".join(lines)}
        as_json(answer | {"functions": functions})
    else:
        show_functions(label, functions)
    if changed:
        raise SystemExit(1)


@rules.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--label", default="", help="Only what this owner has deployed: LABEL/..., as NAME.yaml.")
@click.option("--overwrite", is_flag=True, help="Replace files that have another text.")
@json_option
def export(folder: Path, label: str, overwrite: bool, json_: bool) -> None:
    """Write the deployed rule files to FOLDER, which deploys to the same.

    `functions.lock` there has the hashes of their functions.

    \b
    Example:
      oncue rules export rules/ --label 2bm
      oncue deploy rules/ --label 2bm --replace
    """
    need("an export of rules")
    from oncue.cli.deploying.export import export_rules

    with connected() as client:
        found = export_rules(client, folder, label, overwrite)
    if json_:
        as_json(found)
        return
    for file in found:
        say(f"{file.label}@{file.version}: {file.file}")
        for note in file.notes:
            say(f"{file.file}: {note}", err=True)


@rules.command()
@click.argument("label", shell_complete=completers.labels)
@json_option
def history(label: str, json_: bool) -> None:
    """List all versions of a deployment.

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
@click.option("--yes", is_flag=True, help="Deploy without asking.")
@json_option
def rollback(label: str, version: int, yes: bool, json_: bool) -> None:
    """Deploy an older version again, with its functions as they were then.

    Shows the changes and asks first. The result is a new version.

    \b
    Example:
      oncue rules rollback beamline 3 --yes
    """
    with connected() as client:
        show_difference(client.rules.rollback(label, version, dry_run=True), err=json_)
        if not yes:
            ask(f"Deploy version {version} of {label} again?", "give --yes")
        done = client.rules.rollback(label, version)
    as_json(done) if json_ else say(f"{done.label}@{done.version} is deployed")
    for trigger in done.triggers:
        show_trigger(trigger, quiet=json_)


@rules.command()
@click.argument("name", shell_complete=completers.rules)
@click.option("--why", default="", help="Kept, and shown to those who ask.")
@json_option
def enable(name: str, why: str, json_: bool) -> None:
    """Enable a rule: it fires again.

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
def resume(name: str, why: str, json_: bool) -> None:
    """Let a rule go on that the server has paused.

    It is enabled, too. The events that it did not test meanwhile are in dead letters: `oncue dead
    list`.

    \b
    Example:
      oncue rules resume reconstruct
    """
    with connected() as client:
        paused = client.rules.get(name).state == "paused"
        found = client.rules.enable(name, why)
    missed = "; `oncue dead list` names the events that it missed" if paused else "; it was not paused"
    as_json(found) if json_ else say(f"{name} is {found.state}{missed}")


@rules.command()
@click.argument("name", shell_complete=completers.rules)
@click.option("--why", default="", help="Kept, and shown to those who ask.")
@json_option
def disable(name: str, why: str, json_: bool) -> None:
    """Disable a rule: it does not fire until it is enabled.

    \b
    Example:
      oncue rules disable reconstruct --why "detector is being aligned"
    """
    with connected() as client:
        found = client.rules.disable(name, why)
    as_json(found) if json_ else say(f"{name} is {found.state}")


@rules.command()
@click.argument("label", shell_complete=completers.labels)
@click.option("--yes", is_flag=True, help="Remove without asking.")
@json_option
def remove(label: str, yes: bool, json_: bool) -> None:
    """Remove all rules and triggers of a deployment. Its history is kept.

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


rules.add_command(coverage)
rules.add_command(simulate)
