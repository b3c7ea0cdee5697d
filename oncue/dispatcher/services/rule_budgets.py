"""Node-hours of rules: their use, and pauses of rules that are over their limit.

The view counts the use by the hour, from the ends of attempts, so it survives restarts, and all
servers count the same. Tasks that run count when they end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import msgspec

from oncue.clocks.process import now_us
from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.dispatcher.bridge.paused_rules import NONE_PAUSED, PausedRules
from oncue.dispatcher.bridge.socket import BridgeSocket
from oncue.dispatcher.context import ServerContext
from oncue.dispatcher.metrics.metrics import RuleNumbers
from oncue.dispatcher.off_loop import off_loop, off_loop_if
from oncue.dispatcher.services.deployment.deployed_rules import DeployedRules
from oncue.dispatcher.services.shared_answer import SharedAnswer
from oncue.errors import OncueError
from oncue.protocol import api as r
from oncue.quantities import Rate, duration_text
from oncue.rules.active_rules import ActiveRule
from oncue.view.use_rows import HOUR_US, RuleKey, RuleUsage

log = logging.getLogger("oncue.rules")
LOOK_S = 1.0
MANY = 500  # rules; what is done for more is done in a thread
WEEK_MS = 7 * 86_400_000
STARTING = PausedRules(others="the server has just started, and reads what rules have used")


class RuleUse(msgspec.Struct, frozen=True):
    """Use of one rule within its limit's period, or a week."""

    used: RuleUsage
    limit: Rate | None = None

    @property
    def node_hours(self) -> float:
        return self.used.node_us / HOUR_US

    @property
    def trouble(self) -> str:
        """Reason why no more tasks start; "" if they may."""
        if self.limit is None or self.node_hours < self.limit.amount:
            return ""
        period = duration_text(self.limit.per_ms)
        return (
            f"limits.node_hours: {self.node_hours:.3g} of {self.limit.amount:g} node-hours are used in {period}; "
            "its tasks start again when older use is out of that time"
        )


class RuleBudgets:
    """Use of all rules, and the pauses that follow from it."""

    def __init__(self, context: ServerContext, deployed: DeployedRules, bridge: BridgeSocket) -> None:
        self._context, self._deployed, self._bridge = context, deployed, bridge
        self._uses = SharedAnswer(self._look)
        bridge.paused = STARTING

    async def uses(self) -> Mapping[str, RuleUse]:
        """Return the use of the rules that have a limit or have used something, by name."""
        return await self._uses.get()

    async def _look(self) -> dict[str, RuleUse]:
        active, now = self._deployed.engine.active_rules, now_us()
        periods = {WEEK_MS, *map(_period, active.limited.values())}
        hours = {ms: (now - ms * 1_000) // HOUR_US for ms in periods}
        found = await self._context.view.rule_usage(list(hours.values()))
        by_period = {ms: found[hour] for ms, hour in hours.items()}
        return await off_loop(_uses, active.entries, by_period)

    async def watch(self) -> None:
        """Pause and resume the tasks of rules, until cancelled."""
        while True:
            try:
                await self.apply()
            except OncueError as e:  # the view says so elsewhere, too
                log.warning("what rules have used cannot be read: %s", e.message)
            await asyncio.sleep(LOOK_S)

    async def apply(self) -> None:
        """Pause the tasks of rules that have used what they may; resume those of others."""
        limited = self._deployed.engine.active_rules.limited
        uses = await self.uses() if limited else {}
        reasons = {
            (name, entry.deployment.owner): f"rule {name!r}: {use.trouble}"
            for name, entry in limited.items()
            if (use := uses.get(name)) is not None and use.trouble
        }
        paused = PausedRules(reasons) if reasons else NONE_PAUSED
        if paused == self._bridge.paused:
            return
        self._bridge.paused = paused
        for endpoint in list(self._bridge.channels):
            self._bridge.with_channel(endpoint, lambda channel: _pause(channel, paused))

    async def update_metrics(self) -> None:
        """Set the gauges of /metrics."""
        uses = await self.uses()
        await off_loop_if(len(uses) > MANY, lambda: self._context.metrics.rules_used(_numbers(uses)))

    async def with_use(self, infos: list[r.RuleInfo]) -> list[r.RuleInfo]:
        """Return the rules with what they have used."""
        uses = await self.uses()

        def described() -> list[r.RuleInfo]:
            return [_with_use(info, uses[info.name]) if info.name in uses else info for info in infos]

        return await off_loop_if(len(infos) > MANY, described)


def _pause(channel: EndpointChannel, paused: PausedRules) -> None:
    channel.pending.pause(paused)
    channel.dispatch()


def _period(entry: ActiveRule) -> int:
    return entry.rule.node_hours.per_ms if entry.rule.node_hours is not None else WEEK_MS


def _uses(entries: Mapping[str, ActiveRule], found: Mapping[int, Mapping[RuleKey, RuleUsage]]) -> dict[str, RuleUse]:
    uses: dict[str, RuleUse] = {}
    for name, entry in list(entries.items()):
        limit, used = entry.rule.node_hours, found[_period(entry)].get((name, entry.deployment.owner))
        if used is not None or limit is not None:
            uses[name] = RuleUse(used or RuleUsage(), limit)
    return uses


def _numbers(uses: Mapping[str, RuleUse]) -> dict[str, RuleNumbers]:
    return {
        name: RuleNumbers(
            use.node_hours,
            use.used.cpu_us / HOUR_US,
            use.limit.amount if use.limit is not None else 0.0,
            bool(use.trouble),
        )
        for name, use in uses.items()
    }


def _with_use(info: r.RuleInfo, use: RuleUse) -> r.RuleInfo:
    used, limit = use.used, use.limit
    return msgspec.structs.replace(
        info,
        attempts=used.attempts,
        node_hours=round(use.node_hours, 6),
        worker_hours=round(used.worker_us / HOUR_US, 6),
        cpu_hours=round(used.cpu_us / HOUR_US, 6),
        peak_bytes=used.peak_bytes,
        node_hours_limit=limit.amount if limit is not None else 0.0,
        node_hours_period_s=(limit.per_ms if limit is not None else WEEK_MS) // 1_000,
        why="; ".join(filter(None, (use.trouble, info.why))),
    )
