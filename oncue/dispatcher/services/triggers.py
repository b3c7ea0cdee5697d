"""The triggers of the rule files in force: those that run here, and what is told of those that other servers run.

deploy ──► its triggers here: their first look ──────────────► the answer
       ├─► on another server: that is asked until it has looked ──►┘
       └─► on none yet (the servers divide them anew): until one runs them ──►┘   none of it for ever
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import msgspec

from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.services.stateful_rules import WindowDesk
from oncue.dispatcher.trigger_state import LogReplicatedState
from oncue.dispatcher.trigger_supervisor import DesiredTrigger, TriggerSupervisor
from oncue.errors import NotFound
from oncue.protocol import api as r
from oncue.protocol.records import Deployment
from oncue.rules.parsing.rule_file import RuleSet
from oncue.triggers.catalog import trigger_class

LOOK_S = 15.0  # how long the answer to a deploy waits for its triggers' first look; clients wait 60 s for an answer
ASK_S = 0.1  # between two looks at how a trigger is that does not run here
NOT_YET = ("elsewhere", "starting", "looking")  # states in which a trigger may look yet


class TriggerDesk(WindowDesk):
    triggers_host: TriggerSupervisor
    _deployments: dict[str, Deployment]
    _sets: dict[str, RuleSet]
    _answering: set[str]  # labels of deploys that are being answered here

    # ------------------------------------------------------------ running

    def on_owners(self) -> None:
        """Other servers' triggers may be this one's now, and the other way round."""
        if hasattr(self, "triggers_host"):
            self._update_triggers()

    def _update_triggers(self) -> None:
        wanted = self._wanted()
        here = {n: w for n, w in wanted.items() if trigger_class(w.kind).runs_everywhere or self.owners.owns(n)}
        elsewhere = {n: (w, self.owners.owner_label(n)) for n, w in wanted.items() if n not in here}
        self.triggers_host.update(here, elsewhere)
        if self.log.shared:  # deployed through another server, whose answer may have given up waiting for this one
            self.triggers_host.on_deployed([n for n, w in here.items() if w.label not in self._answering])

    def trigger_memory(self, name: str) -> LogReplicatedState | None:
        return LogReplicatedState(self.log, name) if self.log.shared else None

    def _wanted(self) -> dict[str, DesiredTrigger]:
        found: dict[str, DesiredTrigger] = {}
        for label, ruleset in self._sets.items():
            for spec in ruleset.triggers:
                options, file = spec.options, self._deployments[label].path
                if file:
                    options = trigger_class(spec.kind).resolve_paths(options, Path(file).parent)
                at_us = self._deployments[label].at_us
                found[spec.name] = DesiredTrigger(spec.name, spec.kind, options, label, at_us)
        return found

    # ------------------------------------------------------------ deployed

    async def initial_scans(self, names: Iterable[str], bearer: str) -> list[r.TriggerInfo]:
        """How these are once they have told what was there before from what comes, whichever server runs them, or cannot for
        now; after LOOK_S all the same."""
        told: dict[str, r.TriggerInfo] = {}
        left = names = set(names)
        try:
            async with asyncio.timeout(LOOK_S):
                while left:
                    here = self.triggers_host.running(left)
                    await self.triggers_host.initial_scan(here, LOOK_S)
                    left = left - self.triggers_host.running(here)  # but for those that another server runs since then
                    left = {info.name for info in self.triggers_host.infos(left)}
                    told |= await self._told_elsewhere(left, bearer)
                    left = {n for n in left if n not in told or _may_look(told[n])}
                    if left:
                        await asyncio.sleep(ASK_S)
        except TimeoutError:
            pass
        return [_known(info, told) for info in self.triggers_host.infos(names)]

    async def _told_elsewhere(self, names: Iterable[str], bearer: str) -> dict[str, r.TriggerInfo]:
        """What their servers say of these; each is asked once."""
        wanted = set(names)
        urls = sorted({self.owners.owner_url(n) for n in wanted} - {""})
        answers = await asyncio.gather(*(self.across.triggers(url, bearer) for url in urls))
        return {
            info.name: msgspec.structs.replace(info, server=url)
            for url, infos in zip(urls, answers, strict=True)
            for info in infos
            if info.name in wanted and info.state != "elsewhere"
        }

    # ------------------------------------------------------------ looking

    async def triggers(self, who: Caller, bearer: str = "") -> list[r.TriggerInfo]:
        if not bearer and self.log.shared:  # another server asks, which may have deployed one a moment ago
            await self._registry_caught_up()
        mine = self._visible(who)
        told = await self._told_elsewhere([info.name for info in mine if info.state == "elsewhere"], bearer)
        return [_known(info, told) for info in mine]

    async def trigger(self, who: Caller, name: str, bearer: str = "") -> r.TriggerShown:
        info = self._one(who, name)
        url = self._runs_at(info)
        if (told := await self.across.trigger(url, name, bearer)) is not None:
            return msgspec.structs.replace(told, server=url)
        return r.TriggerShown(**msgspec.structs.asdict(info), decisions=self.triggers_host.decisions(name))

    async def explain_file(self, who: Caller, name: str, path: str, bearer: str = "") -> r.TriggerFile:
        info = self._one(who, name)
        url = self._runs_at(info)
        told = await self.across.trigger_file(url, name, path, bearer)
        return told if told is not None else await self.triggers_host.explain(name, path)

    def _visible(self, who: Caller) -> list[r.TriggerInfo]:
        return [i for i in self.triggers_host.infos() if i.label in self._sets and self._sees(who, i.label)]

    def _runs_at(self, info: r.TriggerInfo) -> str:
        """The API of the server that runs it, where that is another; "": it runs here, or it is not known where."""
        return self.owners.owner_url(info.name) if info.state == "elsewhere" else ""

    def _one(self, who: Caller, name: str) -> r.TriggerInfo:
        mine = self._visible(who)
        found = next((info for info in mine if info.name == name), None)
        if found is None:
            names = ", ".join(info.name for info in mine[:20])
            remedy = f"there are: {names}" if names else "oncue deploy FILE"
            raise NotFound(f"there is no trigger {name!r}", remedy=remedy)
        return found

    def _sees(self, who: Caller, label: str) -> bool:
        return who.sees(self._deployments[label].owner)


def _known(info: r.TriggerInfo, told: dict[str, r.TriggerInfo]) -> r.TriggerInfo:
    """As its own server tells, where it runs on another."""
    return told.get(info.name, info) if info.state == "elsewhere" else info


def _may_look(info: r.TriggerInfo) -> bool:
    return not info.looked and info.state in NOT_YET
