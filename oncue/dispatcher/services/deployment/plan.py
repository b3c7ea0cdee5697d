"""Step 4 of a deploy: plan the changes of each file, and its record."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from oncue.clocks.process import now_us
from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.context import ServerContext
from oncue.dispatcher.services.deployment.checks import BoundFile, check_counts, same_origin
from oncue.dispatcher.services.deployment.deployed_rules import DeployedRules
from oncue.protocol import api as r
from oncue.protocol.records import VERSION, Deployment
from oncue.rules.diff import diff
from oncue.rules.parsing.rule_file import RuleSet, check_unique, parse
from oncue.triggers.catalog import OptionStructs
from oncue.view import View


@dataclass(frozen=True, slots=True)
class Plan:
    """Answer to the caller, and the record to append; None if nothing changes."""

    answer: r.Deployed
    record: Deployment | None


async def plan_file(
    caller: Caller, bound: BoundFile, note: str, deployed: DeployedRules, context: ServerContext
) -> Plan:
    """Compare a bound file with what is in force."""
    file = bound.file
    old = deployed.deployments.get(file.label)
    replaces = "" if old is None or same_origin(old, file) else old.origin
    changed = old is None or old.text != bound.rules.text or old.functions != bound.functions or bool(replaces)
    changed = changed or (caller.is_admin and old is not None and old.by_admin is False)  # it gets an admin's rights
    version = old.version if old else 1
    if changed:
        version = await next_version(context.view, file.label)
    answer = await _answer(caller, file.label, version, bound.rules, bound.functions, deployed, context)
    answer = msgspec.structs.replace(answer, changed=changed, replaces=replaces)
    if not changed:
        return Plan(answer, None)
    record = Deployment(
        VERSION,
        file.label,
        version,
        caller.subject,
        bound.rules.text,
        bound.functions,
        now_us(),
        note,
        path=file.path,
        host=file.host,
        by_admin=caller.is_admin,
    )
    return Plan(answer, _with_since(record, bound.rules, deployed))


def _with_since(record: Deployment, rules: RuleSet, deployed: DeployedRules) -> Deployment:
    """Return the record with `since_us` of its rules on outcomes."""
    old, before = deployed.deployments.get(record.label), deployed.rulesets.get(record.label)
    known: dict[str, int] = {}
    if old is not None and before is not None:
        known = {r.name: old.since_us.get(r.name, old.at_us) for r in before.rules if r.follows is not None}
    since = {r.name: known.get(r.name, record.at_us) for r in rules.rules if r.follows is not None}
    return msgspec.structs.replace(record, since_us=since)


async def plan_rollback(caller: Caller, old: Deployment, deployed: DeployedRules, context: ServerContext) -> Plan:
    """Plan to deploy an older version as a new one: the history only grows.

    Raises RuleFileError, Conflict.
    """
    others = [s for label, s in deployed.rulesets.items() if label != old.label]
    rules = await asyncio.to_thread(_parse_again, old, others)
    check_counts(caller, {old.label: rules}, deployed)
    version = await next_version(context.view, old.label)
    record = msgspec.structs.replace(
        old,
        version=version,
        at_us=now_us(),
        owner=caller.subject,
        note=f"rolled back to version {old.version}",
        by_admin=caller.is_admin,
    )
    answer = await _answer(caller, old.label, version, rules, old.functions, deployed, context)
    return Plan(answer, _with_since(record, rules, deployed))


def _parse_again(old: Deployment, others: Sequence[RuleSet]) -> RuleSet:
    rules = parse(old.text, old.label, OptionStructs(), triggers=None, stored=True)
    check_unique([*others, rules])
    return rules


async def plan_removal(
    caller: Caller, old: Deployment, deployed: DeployedRules, context: ServerContext, note: str | None = None
) -> Plan:
    """Plan to remove all rules and triggers of a label.

    `note` None: that of the old one.
    """
    version = await next_version(context.view, old.label)
    note = old.note if note is None else note
    gone = msgspec.structs.replace(old, version=version, at_us=now_us(), owner=caller.subject, removed=True, note=note)
    rules = deployed.rulesets.get(old.label)  # without rules, none is read
    names = [rule.name for rule in rules.rules] if rules else []
    return Plan(r.Deployed(label=old.label, version=version, changed=True, removed=names), gone)


async def next_version(view: View, label: str) -> int:
    """Return the version of the next deployment of a label."""
    return await view.newest_version(label) + 1


async def _answer(
    caller: Caller,
    label: str,
    version: int,
    rules: RuleSet,
    functions: Mapping[str, str],
    deployed: DeployedRules,
    context: ServerContext,
) -> r.Deployed:
    found = await asyncio.to_thread(diff, deployed.rulesets.get(label), rules)
    changes = await _function_changes(context.view, deployed.deployments.get(label), functions, caller.subject)
    return r.Deployed(
        label=label,
        version=version,
        changed=True,
        added=list(found.added),
        changed_rules=sorted({*found.changed, *_users(rules, changes)} - {*found.added}),
        removed=list(found.removed),
        diff=found.text,
        functions=changes,
    )


async def _function_changes(
    view: View, old: Deployment | None, functions: Mapping[str, str], owner: str
) -> list[r.FunctionChange]:
    """Return the functions whose content differs.

    `functions` maps names to hashes, as `owner` would deploy them.
    """
    before = old.functions if old and not old.removed else {}
    return [
        r.FunctionChange(
            function=name,
            old=before.get(name, ""),
            new=functions.get(name, ""),
            old_version=await _version(view, before.get(name, ""), old.owner if old else owner),
            new_version=await _version(view, functions.get(name, ""), owner),
        )
        for name in dict.fromkeys([*functions, *before])
        if before.get(name) != functions.get(name)
    ]


async def _version(view: View, content: str, owner: str) -> int:
    found = await view.function(content, owner, of_others=True) if content else None
    return found.version if found else 0


def _users(rules: RuleSet, changes: list[r.FunctionChange]) -> set[str]:
    """Return the rules that run a function whose content changed."""
    changed = {c.function for c in changes if c.old and c.new}
    return {rule.name for rule in rules.rules if any(run.function in changed for run in rule.runs)}
