"""Lists, explains and switches the rules in force."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Mapping, Sequence

import msgspec

from oncue.clocks.process import now_us
from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.context import ServerContext
from oncue.dispatcher.services.deployment.deployed_rules import DeployedRules
from oncue.dispatcher.services.rule_budgets import RuleBudgets
from oncue.dispatcher.services.stateful_rules import StatefulRuleService
from oncue.dispatcher.services.triggers import TriggerService
from oncue.errors import Conflict, NotFound
from oncue.ids import parse_task_id
from oncue.protocol import api as r
from oncue.protocol.records import VERSION, Deployment, Event, RuleSwitch
from oncue.rules.operators.catalog import CATALOGUE
from oncue.rules.outcomes.outcome_event import outcome_event


class RuleService:
    """Rules in force, with counts, open windows and states of triggers."""

    def __init__(
        self,
        context: ServerContext,
        deployed: DeployedRules,
        triggers: TriggerService,
        stateful: StatefulRuleService,
        budgets: RuleBudgets,
    ) -> None:
        self._context, self._deployed, self._budgets = context, deployed, budgets
        self._triggers, self._stateful = triggers, stateful

    async def all(self, caller: Caller, bearer: str = "") -> list[r.RuleInfo]:
        """Return the rules that the caller may see.

        With `bearer`, the counts of the other servers are added.
        """
        infos = await asyncio.to_thread(self._infos, caller, await self._triggers.not_running())
        return await self._with_state(infos, bearer)

    async def get(self, caller: Caller, name: str, bearer: str = "") -> r.RuleInfo:
        """Return one rule. Raises NotFound."""
        info = self._deployed.engine.rule(name)
        if info is None or not self._deployed.visible(caller, info.label):
            names = await asyncio.to_thread(self._names, caller)
            raise NotFound(f"there is no rule {name!r}", remedy=f"there are: {names}" if names else "oncue deploy FILE")
        failed = {t.name: t for t in await self._triggers.not_running(triggers_of(info))}
        (found,) = await self._with_state([_with_trigger(info, failed)], bearer)
        return await self._stateful.with_waits(found)

    def _infos(self, caller: Caller, not_running: Sequence[r.TriggerInfo]) -> list[r.RuleInfo]:
        """Return the rules, and a row for each unreadable file. For any thread."""
        failed = {t.name: t for t in not_running}
        visible = self._deployed.visible
        found = [_with_trigger(info, failed) for info in self._deployed.engine.rules() if visible(caller, info.label)]
        return found + [
            _unread(d, why, self._deployed.off) for d, why in self._deployed.unreadable() if caller.sees(d.owner)
        ]

    def _names(self, caller: Caller) -> str:
        visible = (i.name for i in self._deployed.engine.rules() if self._deployed.visible(caller, i.label))
        return ", ".join(heapq.nsmallest(20, visible))

    async def _with_state(self, infos: list[r.RuleInfo], bearer: str) -> list[r.RuleInfo]:
        infos = await self._budgets.with_use(await self._stateful.with_windows(infos))
        return await self._stateful.with_peers(infos, bearer)

    async def switch(self, caller: Caller, name: str, enabled: bool, why: str) -> r.RuleInfo:
        """Enable or disable a rule. Raises NotFound, NotReady, DiskFull."""
        self._context.check_accepting()
        await self.get(caller, name)
        switch = RuleSwitch(VERSION, name, enabled, caller.subject, why, now_us())
        await self._context.record([(f"switch:{name}", switch)])
        await self._deployed.reload()
        if enabled:
            self._deployed.resumed(name)
        return await self.get(caller, name)

    async def explain(self, caller: Caller, name: str, event: Event | None, offset: int | None) -> r.Explanation:
        """Explain whether the rule fires for an event, or for a stored one.

        Raises NotFound.
        """
        await self.get(caller, name)
        if event is None:
            found = await self._context.view.event(offset or 0)
            if found is None:
                raise NotFound(f"there is no event at offset {offset}", remedy="oncue events list shows what there is")
            event = found.event
        explained = await self._deployed.engine.explain(name, event)
        explained = await self._stateful.with_preview(explained, name, event)
        return msgspec.structs.replace(explained, fired=await self._tasks_of(caller, name, event))

    async def explain_outcome(self, caller: Caller, name: str, task: str) -> r.Explanation:
        """Explain whether the rule fires for the outcome of a task.

        Raises NotFound, Conflict.
        """
        return await self.explain(caller, name, await self._outcome(caller, task), None)

    async def _outcome(self, caller: Caller, task: str) -> Event:
        """Return the outcome event of a task. Raises NotFound, Conflict."""
        task_id = parse_task_id(task)
        found = (await self._context.view.with_causes([task_id])).get(task_id)
        if found is None or found[0].call is None or not caller.sees(found[0].call.owner):
            raise NotFound(f"there is no task {task}", remedy="oncue tasks list")
        state, cause = found
        if state.call is None or state.closing is None:
            raise Conflict(f"the task {task} has no outcome yet", remedy="wait until it has closed")
        return outcome_event(state, cause, self._context.registry.endpoint_name(state.call.endpoint))

    async def _tasks_of(self, caller: Caller, rule: str, event: Event) -> list[r.Fired]:
        """Return the tasks that this rule made for the event."""
        caused = await self._context.view.fired(event.source, event.id)
        versions = {i: call.rule_version for call, i in caused if call.rule == rule and caller.sees(call.owner)}
        accepted = await self._context.view.accepted(list(versions)) if versions else {}
        return [r.Fired(task=i.hex(), at_us=accepted.get(i, 0), version=version) for i, version in versions.items()]


def triggers_of(info: r.RuleInfo) -> Sequence[str]:
    """Return the names of the triggers that a rule names."""
    found = [info.on]
    if isinstance(info.on, dict):  # of patterns: {join: {scan: scans, dark: [darks, flats]}}
        patterns = [of for name, of in info.on.items() if name in CATALOGUE.members and isinstance(of, dict)]
        found = [each for of in patterns for each in of.values()]
    names = [[each] if isinstance(each, str) else each for each in found if isinstance(each, str | list | tuple)]
    return [name for several in names for name in several]


def _with_trigger(info: r.RuleInfo, failed: Mapping[str, r.TriggerInfo]) -> r.RuleInfo:
    """Add the reason if a trigger of the rule does not run."""
    found = [failed[name] for name in triggers_of(info) if name in failed]
    if info.state != "active" or not found:
        return info
    why = "; ".join(f"its trigger {t.name} is {t.state}" + (f": {t.detail}" if t.detail else "") for t in found)
    return msgspec.structs.replace(info, why="; ".join(filter(None, (why, info.why))))


def _unread(d: Deployment, why: str, off: bool) -> r.RuleInfo:
    """Return the row of a file in force that is not read, or that cannot be."""
    return r.RuleInfo(
        name=d.label,
        label=d.label,
        version=d.version,
        enabled=False,
        on=None,
        runs=[],
        endpoint="",
        state="off" if off else "unreadable",
        why=why if off else f"this version of oncue cannot read the file, so none of its rules fires: {why}",
    )
