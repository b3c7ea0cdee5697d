"""Deploys, rolls back and removes rule files.

    deploy ─► check ─► parse ─► bind ─► plan ─► record ─► wait ─► answer
       deployment_checks.py, rule_file_parser.py, deployment_plan.py   └─ triggers.py: initial scans

A deploy is all or nothing: the records of all files are one append to the registry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import msgspec

from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.context import ServerContext
from oncue.dispatcher.services.deployment.checks import (
    BoundFile,
    bind_file,
    check_counts,
    check_labels,
    check_origin,
    prunable,
    warnings_of,
)
from oncue.dispatcher.services.deployment.deployed_rules import WITHOUT_RULES, DeployedRules
from oncue.dispatcher.services.deployment.plan import Plan, plan_file, plan_removal, plan_rollback
from oncue.dispatcher.services.functions import FunctionService
from oncue.dispatcher.services.stateful_rules import StatefulRuleService
from oncue.dispatcher.services.trigger_rights import check_triggers
from oncue.dispatcher.services.triggers import TriggerService
from oncue.errors import Conflict, NotFound
from oncue.protocol import api as r
from oncue.protocol.records import Deployment

HISTORY_BYTES = 8 << 20  # characters of rule files in one answer


class DeploymentService:
    """Changes which rule files are in force, one change at a time."""

    def __init__(
        self,
        context: ServerContext,
        deployed: DeployedRules,
        triggers: TriggerService,
        stateful: StatefulRuleService,
        functions: FunctionService,
    ) -> None:
        self._context, self._deployed, self._functions = context, deployed, functions
        self._triggers, self._stateful = triggers, stateful
        self._changing = asyncio.Lock()  # from the comparison of a deploy until it is in force

    # ------------------------------------------------------------ change

    async def deploy(self, caller: Caller, request: r.DeployRequest, bearer: str = "") -> list[r.Deployed]:
        """Deploy the files, all or none. With `dry_run`, only return the changes.

        The answer waits for the initial scans of the triggers, also if nothing changed: an earlier
        answer may have been lost. Raises RuleFileError, Conflict, Forbidden, Invalid.
        """
        context, deployed = self._context, self._deployed
        context.check_accepting()
        async with self._changing:
            await deployed.sync()
            check_labels(caller, request.files, deployed)
            pruned = prunable(caller, request, deployed)
            labels = {f.label for f in request.files} | {d.label for d in pruned}
            others = [s for label, s in deployed.rulesets.items() if label not in labels]
            own = deployed.rules_of(caller.subject, besides=labels)
            parsed = await deployed.parser.parse(request.files, others, own, any_name=deployed.off)
            check_counts(caller, {f.label: s for f, s in zip(request.files, parsed, strict=True)}, deployed)
            for given, rules in zip(request.files, parsed, strict=True):
                await check_triggers(caller, rules, given.path, context.settings.trigger_roots)
            bound = [
                await bind_file(caller, f, rules, request.functions, context)
                for f, rules in zip(request.files, parsed, strict=True)
            ]
            plans = [await plan_file(caller, f, request.note, deployed, context) for f in bound]
            removals = [await plan_removal(caller, d, deployed, context, request.note) for d in pruned]
            warnings = await warnings_of(parsed, others, context)
            answers = [
                msgspec.structs.replace(plan.answer, warnings=found)
                for plan, found in zip(plans, warnings, strict=True)
            ]
            gone = [msgspec.structs.replace(plan.answer, pruned=True) for plan in removals]
            if not request.dry_run:
                await self._put_in_force(caller, plans, bound, request.replace, removals)
        if not request.dry_run:
            return await self._wait([*answers, *gone], bearer)
        notes = [await self._triggers.previews(f.rules, f.file.path) for f in bound]
        return [*(msgspec.structs.replace(a, notes=n) for a, n in zip(answers, notes, strict=True)), *gone]

    async def _put_in_force(
        self,
        caller: Caller,
        plans: Sequence[Plan],
        bound: Sequence[BoundFile],
        replace: bool,
        removals: Sequence[Plan],
    ) -> None:
        """Register the files' scripts, and record the plans and removals.

        Raises Conflict for a file from another place, unless `replace`.
        """
        if not replace:
            for plan, f in zip(plans, bound, strict=True):
                check_origin(plan.answer.replaces, f.file)
        for f in bound:
            await self._functions.register_scripts(caller, f.scripts)
        await self._record([*plans, *removals])

    async def rollback(
        self, caller: Caller, label: str, version: int, dry_run: bool = False, bearer: str = ""
    ) -> r.Deployed:
        """Deploy an older version again, as a new one.

        Raises NotFound, Conflict, RuleFileError.
        """
        self._context.check_accepting()
        async with self._changing:
            await self._deployed.sync()
            current = self._deployed.deployments.get(label)
            if current is not None and not caller.sees(current.owner):
                raise self._deployed.no_label(caller, label)
            old = await self._context.view.deployment_version(label, version)
            if old is None or not caller.sees(old.owner):
                await self._history(caller, label)  # raises NotFound for a label that the caller cannot see
            if old is None or old.removed or not caller.sees(old.owner):
                raise NotFound(f"{label} has no version {version}", remedy=f"oncue rules history {label} shows them")
            plan = await plan_rollback(caller, old, self._deployed, self._context)
            if dry_run:
                return plan.answer
            await self._record([plan])
        (answer,) = await self._wait([plan.answer], bearer)
        return answer

    async def remove(self, caller: Caller, label: str) -> r.Deployed:
        """Remove all rules and triggers of a label. Raises NotFound."""
        self._context.check_accepting()
        async with self._changing:
            await self._deployed.sync()
            old = self._deployed.deployments.get(label)
            if old is None or not caller.sees(old.owner):
                raise self._deployed.no_label(caller, label)
            plan = await plan_removal(caller, old, self._deployed, self._context)
            await self._record([plan])
        self._triggers.deployed([label])
        return plan.answer

    async def _record(self, plans: Sequence[Plan]) -> None:
        """Append the records of all plans and put them in force.

        Raises Conflict if another server was first.
        """
        records = [plan.record for plan in plans if plan.record is not None]
        if not records:
            return
        self._triggers.deploying([d.label for d in records])
        try:
            # Each version has a key of its own, so that compaction keeps the history.
            entries = [(f"deployment:{d.label}@{d.version}", d) for d in records]
            (position,) = await self._context.record(entries)
            await self._deployed.reload()
            if self._context.log.shared:
                await self._check_first(records, position.first)
        except BaseException:
            self._triggers.deployed([d.label for d in records])
            raise

    async def _check_first(self, records: Sequence[Deployment], offset: int) -> None:
        """Raise Conflict if another server deployed the same version of a label first.

        Its deployment is recorded again, behind this one, and so is in force.
        All servers read the registry in the same order, so they agree on which was first.
        """
        lost: list[tuple[str, Deployment]] = []
        for record in records:
            places = await self._context.view.deployment_positions(record.label)
            first = next((d for place, d in places if d.version == record.version and place < offset), None)
            if first is not None:
                lost.append((f"deployment:{first.label}@{first.version}", first))
        if lost:
            await self._context.record(lost)
            await self._deployed.reload()
            labels = ", ".join(d.label for _, d in lost)
            raise Conflict(
                f"{labels} was deployed through another server at the same moment, and that is in force",
                remedy="look at the difference (oncue deploy --dry-run), then deploy again",
            )

    async def _wait(self, answers: list[r.Deployed], bearer: str) -> list[r.Deployed]:
        """Add the states of the triggers after their initial scans."""
        rulesets = self._deployed.rulesets
        labels = [a.label for a in answers]
        names = {label: [t.name for t in rulesets[label].triggers] for label in labels if label in rulesets}
        every = [name for some in names.values() for name in some]
        try:
            infos = {info.name: info for info in await self._triggers.initial_scans(every, bearer)}
        finally:
            self._triggers.deployed(labels, every)
        trouble = self._stateful.trouble()
        stateful = {label for label, s in rulesets.items() if any(rule.operators for rule in s.rules)}
        return [
            msgspec.structs.replace(
                a,
                triggers=[infos[n] for n in sorted(names.get(a.label, ())) if n in infos],
                waits=WITHOUT_RULES if self._deployed.off else trouble if a.label in stateful else "",
            )
            for a in answers
        ]

    # ------------------------------------------------------------ history

    async def history(self, caller: Caller, label: str) -> list[dict[str, Any]]:
        """Return the newest versions of a label, newest first. Raises NotFound.

        Texts are left out when together they exceed HISTORY_BYTES.
        """
        found = await self._history(caller, label)
        sizes = accumulate(len(d.text) for d in found)
        return [
            {
                "label": d.label,
                "version": d.version,
                "owner": d.owner,
                "at_us": d.at_us,
                "note": d.note,
                "removed": d.removed,
                "text": d.text if size <= HISTORY_BYTES else "",
                "functions": d.functions,
                "path": d.path,
                "host": d.host,
            }
            for d, size in zip(found, sizes, strict=True)
        ]

    async def _history(self, caller: Caller, label: str) -> list[Deployment]:
        found = [d for d in await self._context.view.deployment_history(label) if caller.sees(d.owner)]
        if not found:
            raise self._deployed.no_label(caller, label)
        return found
