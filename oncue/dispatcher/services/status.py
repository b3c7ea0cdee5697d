"""Health and metrics of the server."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import NamedTuple

from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.dispatcher.bridge.effects import ChannelPhase
from oncue.dispatcher.bridge.socket import BridgeSocket
from oncue.dispatcher.cluster.ownership import PartitionOwnership
from oncue.dispatcher.context import ServerContext
from oncue.dispatcher.metrics.endpoint_gauges import EndpointLoad
from oncue.dispatcher.off_loop import off_loop_if
from oncue.dispatcher.services.deployment.deployed_rules import WITHOUT_RULES, DeployedRules
from oncue.dispatcher.services.endpoints import MANY_ENDPOINTS
from oncue.dispatcher.services.rule_budgets import RuleBudgets
from oncue.dispatcher.services.shared_answer import SharedAnswer
from oncue.dispatcher.services.stateful_rules import StatefulRuleService
from oncue.dispatcher.services.triggers import TriggerService
from oncue.protocol import api as r
from oncue.protocol.reports import Usage


class _Parts(NamedTuple):
    """Health of what one server may have thousands of."""

    triggers: int
    idle: list[r.TriggerInfo]  # triggers that should run and do not
    rules: str
    stateful: str


class StatusService:
    """Content of /health and /metrics."""

    def __init__(
        self,
        context: ServerContext,
        bridge: BridgeSocket,
        ownership: PartitionOwnership,
        deployed: DeployedRules,
        triggers: TriggerService,
        stateful: StatefulRuleService,
        usage: Mapping[str, Usage],
        budgets: RuleBudgets,
    ) -> None:
        """`usage`: endpoint id -> its agent's newest report."""
        self._deployed, self._usage, self._budgets = deployed, usage, budgets
        self._context, self._bridge, self._ownership = context, bridge, ownership
        self._triggers, self._stateful = triggers, stateful
        self._parts = SharedAnswer(self._look)

    async def _look(self) -> _Parts:
        infos = await self._triggers.infos()
        idle = [info for info in infos if info.state in ("failed", "waiting")]
        return _Parts(len(infos), idle, self._rules_trouble(), self._stateful.trouble())

    async def health(self, caller: Caller | None = None) -> r.Health:
        """Return the state of each part: "ok", or what is wrong.

        With a caller, only those triggers are named that the caller may see.
        """
        context, parts = self._context, await self._parts.get()
        trouble, unread = context.log.trouble(), context.view_trouble()
        shown = {
            info.name: info.detail or info.state
            for info in parts.idle
            if caller is None or caller.sees_all or self._deployed.visible(caller, info.label)
        }
        checks = {
            "log": context.disk_full or trouble or "ok",
            "view": unread or "ok",
            "bridge": "ok",
            "blobs": self._blobs_trouble() or "ok",
            "triggers": f"not ok: {len(parts.idle)} of {parts.triggers} do not run" if parts.idle else "ok",
            "rules": parts.rules or "ok",
            "rules with memory": parts.stateful or "ok",
        }
        well = context.ready and not context.disk_full and not trouble and not unread
        status = "ok" if well else "degraded" if context.ready else "starting"
        return r.Health(status=status, version=context.version, checks=checks, triggers=shown)

    def _rules_trouble(self) -> str:
        if self._deployed.off:
            return WITHOUT_RULES
        broken, rules = len(self._deployed.unreadable()), self._deployed.engine.active_rules.entries
        if broken:
            return f"not ok: {broken} of {len(self._deployed.deployments)} rule files cannot be read"
        paused = sum(1 for entry in rules.values() if entry.paused)
        return f"not ok: {paused} of {len(rules)} rules are paused" if paused else ""

    def _blobs_trouble(self) -> str:
        if trouble := self._context.store_trouble:
            return trouble
        others = self._ownership.other_blob_stores()
        return f"not the folder of {', '.join(others)}: set blobs_folder to one that all servers see" if others else ""

    def rules_of(self, owner: str) -> frozenset[str]:
        """Return the names of the rules that are the owner's."""
        entries = self._deployed.engine.active_rules.entries
        return frozenset(name for name, entry in entries.items() if entry.deployment.owner == owner)

    def _loads(self, channels: list[tuple[str, EndpointChannel]]) -> list[EndpointLoad]:
        known, usage_of = self._context.registry.endpoint, self._usage.get
        return [
            EndpointLoad(
                e.name,
                e.owner,
                x.pending.queued_tasks + len(x.in_flight),
                usage_of(i) if x.phase is ChannelPhase.READY else None,
            )
            for i, x in channels
            if (e := known(i)) is not None
        ]

    async def collect(self) -> None:
        """Bring the gauges of /metrics up to date."""
        context, channels = self._context, list(self._bridge.channels.items())
        loads = await off_loop_if(len(channels) > MANY_ENDPOINTS, self._loads, channels)
        context.metrics.endpoints.set(loads)
        context.metrics.connected(sum(x.phase is ChannelPhase.READY for _, x in channels))
        usage = shutil.disk_usage(context.settings.data_path)
        context.metrics.disk(usage.used / (usage.used + usage.free))
        await self._stateful.update_metrics()
        await self._budgets.update_metrics()
        reached = context.view.positions()
        ends = await context.log.end_offsets({topic for topic, _ in reached})
        context.metrics.view_lag(sum(max(0, end - reached.get(place, 0)) for place, end in ends.items()))
        context.metrics.dead(await context.view.open_dead())
