"""Steps 1 and 3 of a deploy: check labels, bind functions.

Each step returns a value that the next one takes. No step changes anything. Steps whose cost grows
with the number of rules run in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.context import ServerContext
from oncue.dispatcher.services.deployment.deployed_rules import DeployedRules
from oncue.errors import Conflict, Forbidden, Invalid, NotFound, OncueError
from oncue.functions.body import Packed
from oncue.protocol import api as r
from oncue.protocol.records import NAME_CHARS, Deployment, FunctionRecord, origin
from oncue.rules.parsing.argument_check import Known, check_arguments
from oncue.rules.parsing.plausibility import TYPES, implausible
from oncue.rules.parsing.rule_file import RuleSet
from oncue.strict_yaml.document import Problems

MOST_FILES, MOST_BYTES = 1_000, 16 * 1024 * 1024  # of one request
PATH_CHARS = 4_096
# Of one owner who is no admin; each file trigger has a thread and an inotify instance.
RULE_FILES, RULES, TRIGGERS, FILE_TRIGGERS = 10_000, 30_000, 10_000, 32
PROGRAM = 8_000_000  # instructions of globs and regular expressions: 100 MB


@dataclass(frozen=True, slots=True)
class BoundFile:
    """A parsed file, and the content hashes of its functions by name."""

    file: r.RuleFile
    rules: RuleSet
    functions: dict[str, str]
    scripts: tuple[Packed, ...] = ()  # functions that the file itself defines


def check_labels(caller: Caller, files: Sequence[r.RuleFile], deployed: DeployedRules) -> None:
    """Check that the labels are unique and the caller's.

    Raises Invalid for no file, Conflict for two of one label, Forbidden for another's label.
    """
    if not files:
        raise Invalid("no rule file was given", remedy="oncue deploy FILE...")
    check_size(files)
    labels = {f.label for f in files}
    if len(labels) < len(files):
        raise Conflict(
            "two of the files have the same label",
            remedy="rename one, or deploy them one after the other, each with a --label",
        )
    for f in files:
        check_owner(caller, f.label, deployed)


def prunable(caller: Caller, request: r.DeployRequest, deployed: DeployedRules) -> list[Deployment]:
    """Return what the label of `prune` owns and the request lacks."""
    if not request.prune:
        return []
    kept, owner = {f.label for f in request.files}, request.prune + "/"
    return [
        d
        for label, d in sorted(deployed.deployments.items())
        if label.startswith(owner) and label not in kept and caller.sees(d.owner)
    ]


def check_size(files: Sequence[r.RuleFile]) -> None:
    """Check that a request can be parsed in seconds, and stored. Raises Invalid."""
    size = sum(len(f.text) for f in files)
    if len(files) > MOST_FILES or size > MOST_BYTES:
        raise Invalid(
            f"{len(files):,} rule files of {size:,} characters; at most {MOST_FILES:,} files of {MOST_BYTES:,} at once",
            remedy="deploy them in several steps",
        )
    for f in files:
        if not 0 < len(f.label) <= NAME_CHARS or not f.label.isprintable():
            raise Invalid(
                f"{f.label[:60]!r} is not a label",
                remedy=f"a label is a name of 1 to {NAME_CHARS} printable characters: --label NAME",
            )
        if len(f.path) > PATH_CHARS or len(f.host) > PATH_CHARS:
            raise Invalid(f"the path of {f.label!r} has over {PATH_CHARS:,} characters", remedy="use a shorter one")


def check_owner(caller: Caller, label: str, deployed: DeployedRules) -> None:
    """Raise Forbidden if the label is another person's."""
    old = deployed.deployments.get(label)
    if old is not None and not caller.sees(old.owner):
        raise Forbidden(f"the rule file {label!r} is somebody else's", remedy="deploy yours under another --label")


def check_counts(caller: Caller, files: Mapping[str, RuleSet], deployed: DeployedRules) -> None:
    """Check that the rules and triggers of one person do not become too many.

    `files`: label -> rules that are to be in force. Raises Conflict. An admin may have any number.
    """
    if caller.is_admin:
        return
    now = {label: s for label, s in deployed.rulesets.items() if deployed.deployments[label].owner == caller.subject}
    for what, count, most in _COUNTED:
        wanted, had = sum(map(count, {**now, **files}.values())), sum(map(count, now.values()))
        if wanted > max(most, had):
            raise Conflict(
                f"you would have {wanted:,} {what} in force; at most {most:,} are kept",
                remedy="remove rule files that are not needed (oncue rules remove), or let an admin deploy them",
            )


_COUNTED: tuple[tuple[str, Callable[[RuleSet], int], int], ...] = (
    ("rule files", lambda _: 1, RULE_FILES),
    ("rules", lambda found: len(found.rules), RULES),
    ("triggers", lambda found: len(found.triggers), TRIGGERS),
    ("file triggers", lambda found: sum(t.kind == "file" for t in found.triggers), FILE_TRIGGERS),
    ("instructions of globs and regular expressions", lambda found: found.program_size, PROGRAM),
)


async def bind_file(
    caller: Caller, file: r.RuleFile, rules: RuleSet, given: Mapping[str, str], context: ServerContext
) -> BoundFile:
    """Bind the functions of a file to contents.

    `given` maps names in the file to hashes or registered names. Raises RuleFileError for functions
    and endpoints that do not exist, and for arguments that do not fit.
    """
    bound: dict[str, FunctionRecord] = {}
    wrong: dict[tuple[str, str], OncueError] = {}
    for name in rules.functions:
        try:
            bound[name] = await _function(caller, name, given, context)
        except NotFound as e:
            wrong["function", name] = e
    for endpoint in rules.endpoints:
        try:
            context.registry.find_endpoint(caller, endpoint)
        except (NotFound, Forbidden) as e:
            wrong["endpoint", endpoint] = e
    parameters = {name: f.parameters for name, f in bound.items()}
    await asyncio.to_thread(_check_runs, rules, wrong, parameters)
    scripts = await asyncio.to_thread(lambda: rules.scripts)
    functions = {name: f.id for name, f in bound.items()} | {name: p.id for name, p in scripts.items()}
    return BoundFile(file, rules, functions, tuple(scripts.values()))


async def warnings_of(
    files: Sequence[RuleSet], others: Sequence[RuleSet], context: ServerContext
) -> list[list[r.RuleWarning]]:
    """Return the warnings of each file: what is valid, and probably a mistake."""
    triggers = {t.name: t.options for s in (*others, *files) for t in s.triggers}
    types = await context.view.event_types(TYPES)
    return await asyncio.to_thread(lambda: [implausible(rules, triggers, types, (*others, *files)) for rules in files])


def _check_runs(rules: RuleSet, wrong: Mapping[tuple[str, str], OncueError], parameters: Known) -> None:
    """Raise RuleFileError for runs with a wrong name, or arguments that do not fit."""
    problems = Problems(rules.file)
    for run in (run for rule in rules.rules for run in rule.runs) if wrong else ():
        if e := wrong.get(("function", run.function)):
            problems.add(run.given.function, e.message, e.remedy)
        if e := wrong.get(("endpoint", run.endpoint)):
            problems.add(run.given.endpoint, e.message, e.remedy)
    problems.check()
    check_arguments(rules, parameters)


async def _function(caller: Caller, name: str, given: Mapping[str, str], context: ServerContext) -> FunctionRecord:
    found = await context.view.function(given.get(name, name), caller.subject, of_others=caller.sees_all)
    if found is None:
        raise NotFound(
            f"the function {name!r} is not registered",
            remedy="oncue deploy registers FILE.py:NAME by itself; a registered one is used by its name",
        )
    return found


# ---------------------------------------------------------------- origins


def same_origin(old: Deployment, file: r.RuleFile) -> bool:
    """Return True if the file has the machine and path of the old deployment.

    Older deployments have no host: their paths are compared.
    """
    return old.path == file.path and (not old.host or not file.host or old.host == file.host)


def check_origin(replaces: str, file: r.RuleFile) -> None:
    """Raise Conflict if the file would replace a deployment from another place.

    `replaces`: the origin of that deployment; "" if it is the same.
    """
    if replaces:
        raise Conflict(
            f"the rule file {file.label!r} that is in force came from {replaces}, this one is from"
            f" {origin(file.host, file.path)}",
            remedy="deploy it beside that one under another name: --label NAME; or, to put it in its place: --replace",
            label=file.label,
            replaces=replaces,
        )
