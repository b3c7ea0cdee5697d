"""Steps 1 to 3 of a deploy: check labels, parse rule files, bind functions.

Each step returns a value that the next one takes. No step changes anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.context import ServerContext
from oncue.dispatcher.services.deployed_rules import DeployedRules
from oncue.errors import Conflict, Forbidden, Invalid, NotFound, OncueError
from oncue.protocol import api as r
from oncue.protocol.records import Deployment, FunctionRecord, origin
from oncue.rules.parsing.argument_check import check_arguments
from oncue.rules.parsing.rule_file import RuleSet, check_unique, parse
from oncue.rules.yaml_document import Problems
from oncue.triggers.catalog import OptionStructs


@dataclass(frozen=True, slots=True)
class ParsedFile:
    """A rule file of the request and its rules."""

    file: r.RuleFile
    rules: RuleSet


@dataclass(frozen=True, slots=True)
class BoundFile:
    """A parsed file, and the content hashes of its functions by name."""

    file: r.RuleFile
    rules: RuleSet
    functions: dict[str, str]


def check_labels(caller: Caller, files: Sequence[r.RuleFile], deployed: DeployedRules) -> None:
    """Check that the labels are unique and the caller's.

    Raises Invalid for no file, Conflict for two of one label, Forbidden for another's label.
    """
    if not files:
        raise Invalid("no rule file was given", remedy="oncue deploy FILE...")
    labels = {f.label for f in files}
    if len(labels) < len(files):
        raise Conflict(
            "two of the files have the same label",
            remedy="rename one, or deploy them one after the other, each with a --label",
        )
    for f in files:
        check_owner(caller, f.label, deployed)


def parse_files(files: Sequence[r.RuleFile], deployed: DeployedRules) -> list[ParsedFile]:
    """Parse the files. Raises RuleFileError for faults and for names in use.

    A rule may use a trigger of any file that is in force or in the same request.
    """
    labels = {f.label for f in files}
    others = [s for label, s in deployed.rulesets.items() if label not in labels]
    names = {t.name for s in others for t in s.triggers} | {n for f in files for n in _trigger_names(f)}
    parsed = [ParsedFile(f, parse(f.text, f.path or f.label, OptionStructs(), triggers=names)) for f in files]
    check_unique([*others, *(f.rules for f in parsed)])
    return parsed


def check_owner(caller: Caller, label: str, deployed: DeployedRules) -> None:
    """Raise Forbidden if the label is another person's."""
    old = deployed.deployments.get(label)
    if old is not None and not caller.sees(old.owner):
        raise Forbidden(f"the rule file {label!r} is somebody else's", remedy="deploy yours under another --label")


async def bind_file(caller: Caller, parsed: ParsedFile, given: Mapping[str, str], context: ServerContext) -> BoundFile:
    """Bind the functions of a file to contents.

    `given` maps names in the file to hashes or registered names. Raises RuleFileError for functions
    and endpoints that do not exist, and for arguments that do not fit.
    """
    problems = Problems(parsed.rules.file)
    bound: dict[str, FunctionRecord] = {}
    for run in (run for rule in parsed.rules.rules for run in rule.runs):
        try:
            bound[run.function] = bound.get(run.function) or await _function(caller, run.function, given, context)
        except NotFound as e:
            problems.add(run.given.function, e.message, e.remedy)
        try:
            context.registry.find_endpoint(caller, run.endpoint)
        except NotFound as e:
            problems.add(run.given.endpoint, e.message, e.remedy)
    problems.check()
    check_arguments(parsed.rules, {name: f.parameters for name, f in bound.items()})
    return BoundFile(parsed.file, parsed.rules, {name: bound[name].id for name in parsed.rules.functions})


async def _function(caller: Caller, name: str, given: Mapping[str, str], context: ServerContext) -> FunctionRecord:
    found = await context.view.function(given.get(name, name), caller.subject, of_others=caller.sees_all)
    if found is None:
        raise NotFound(
            f"the function {name!r} is not registered",
            remedy="oncue deploy registers FILE.py:NAME by itself; a registered one is used by its name",
        )
    return found


def _trigger_names(file: r.RuleFile) -> Iterable[str]:
    """Return the trigger names of a file; none if it has errors (see parse_files)."""
    try:
        return [t.name for t in parse(file.text, file.label, None, triggers=None).triggers]
    except OncueError:
        return ()


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
