"""The services of rules on a Site, started and stopped as the server does."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from oncue.dispatcher.services.deployment.deployed_rules import DeployedRules
from oncue.dispatcher.services.deployment.deployments import DeploymentService
from oncue.dispatcher.services.events import EventService
from oncue.dispatcher.services.functions import FunctionService
from oncue.dispatcher.services.rule_budgets import RuleBudgets
from oncue.dispatcher.services.rules import RuleService
from oncue.dispatcher.services.stateful_rules import StatefulRuleService
from oncue.dispatcher.services.triggers import TriggerService
from oncue.protocol import api as r
from oncue.protocol.records import Event
from oncue.protocol.topics import EVENTS
from tests.unit.dispatcher.services.service_site import Site, with_site

RULE = "rules:\n  - name: {name}\n    on: {{type: {type}}}\n    run: {{function: {function}, endpoint: local}}\n"


def rule_text(name: str = "reconstruct", type: str = "scan", function: str = "f") -> str:
    """Return a rule file with one rule."""
    return RULE.format(name=name, type=type, function=function)


def rule_file(text: str = "", label: str = "tomo", **fields: Any) -> r.RuleFile:
    return r.RuleFile(label=label, text=text or rule_text(), **fields)


class RuleSite:
    """A Site with its services of rules."""

    def __init__(self, site: Site) -> None:
        self.site, self.context = site, site.context
        self.synced = 0
        self.deployed = DeployedRules(site.context)
        self.events = EventService(site.context)
        self.triggers = TriggerService(
            site.context, self.deployed, site.ownership, site.peers, self.events, self._sync, site.folder / "triggers"
        )
        self.stateful = StatefulRuleService(site.context, self.deployed, site.ownership, site.peers)
        self.deployments = DeploymentService(
            site.context, self.deployed, self.triggers, self.stateful, FunctionService(site.context)
        )
        self.budgets = RuleBudgets(site.context, self.deployed, site.bridge)
        self.rules = RuleService(site.context, self.deployed, self.triggers, self.stateful, self.budgets)
        self.deployed.on_reload(self.stateful.wake)
        self.deployed.on_reload(self.triggers.update)

    async def _sync(self) -> bool:
        self.synced += 1
        await self.deployed.sync()
        return True

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[RuleSite]:
        """Run engine and triggers; with an embedded log the stateful rules, too."""
        await self.deployed.reload()
        self.triggers.start()
        self.deployed.start()
        if not self.site.log.shared:
            await self.stateful.start(self.site.folder / "windows.db")
        try:
            yield self
        finally:
            await self.triggers.close()
            await self.deployed.close()
            await self.stateful.close()

    async def emit(self, *events: Event) -> None:
        """Append events, and wait until the engine has seen and counted them."""
        engine, before = self.deployed.engine, self.deployed.engine.events
        await self.context.applied(await self.events.append(list(events)))
        while any((await self.site.log.lag("rules", [EVENTS])).values()):
            await self.context.barrier((EVENTS,))
        while engine.events < before + len(events):  # it counts when its commit is durable
            await self.context.barrier((EVENTS,))


def with_rules(folder: Path, work: Callable[[RuleSite], Awaitable[None]], **settings: Any) -> None:
    """Run `work` on a server that runs rules, and has an endpoint `local` and a function `f` of ada's."""

    async def main(site: Site) -> None:
        await site.add_endpoint()
        await site.add_function()
        async with RuleSite(site).running() as rules:
            await work(rules)

    with_site(folder, main, **{"trigger_roots": (str(folder),)} | settings)
