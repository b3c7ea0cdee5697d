"""Runs the triggers in force, and reports those of other servers.

deploy ──► triggers here: initial scan ───────────────────────────► the answer
       ├─► triggers on another server: its state, until scanned ──►┘
       └─► triggers that no server runs yet: until one does ──────►┘   at most LOOK_S seconds
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.cluster.ownership import PartitionOwnership
from oncue.dispatcher.cluster.peers import PeerClient
from oncue.dispatcher.context import ServerContext
from oncue.dispatcher.file_chains import FileChains
from oncue.dispatcher.off_loop import off_loop_if
from oncue.dispatcher.services.deployment.deployed_rules import WITHOUT_RULES, DeployedRules
from oncue.dispatcher.services.events import EventService
from oncue.dispatcher.services.trigger_rights import rights_of
from oncue.dispatcher.trigger_state import LogReplicatedState
from oncue.dispatcher.trigger_supervisor import DesiredTrigger, TriggerSupervisor
from oncue.errors import NotFound, NotReady
from oncue.protocol import api as r
from oncue.protocol.records import Deployment, Event
from oncue.rules.parsing.rule_file import RuleSet
from oncue.triggers.base import HookAnswer, Rights
from oncue.triggers.catalog import trigger_class

LOOK_S = 15.0  # how long a deploy waits for initial scans; clients wait 60 s for an answer
PREVIEW_S = 5.0  # longest count of existing files in a dry run
ASK_S = 0.1  # between two requests for the state of a trigger on another server
FIRST_S = 2.0  # how long a request waits for a webhook that another server deployed a moment ago
MANY_TRIGGERS = 300  # whose states are made beside the event loop
NOT_YET = ("elsewhere", "starting", "looking")  # states before the initial scan has ended


class _Made(NamedTuple):
    """The triggers of a deployment in force."""

    deployment: Deployment
    rights: Rights
    triggers: list[DesiredTrigger]


class TriggerService:
    """Triggers in force. `start`, then `close`."""

    def __init__(
        self,
        context: ServerContext,
        deployed: DeployedRules,
        ownership: PartitionOwnership,
        peers: PeerClient,
        events: EventService,
        sync_registry: Callable[[], Awaitable[bool]],
        folder: Path,
    ) -> None:
        """`folder`: where each trigger keeps its state.

        `sync_registry`: see cluster/registry_sync.py.
        """
        self._context, self._deployed, self._ownership, self._peers = context, deployed, ownership, peers
        self._events, self._sync_registry = events, sync_registry
        self._chains: dict[str, FileChains] = {}  # of each owner
        self._made: dict[str, _Made] = {}  # by label
        self._supervisor = TriggerSupervisor(self._emit, folder, self._replicated_state)
        self._deploying: set[str] = set()  # labels of deploys that this server has not answered yet
        self._started = False

    # ------------------------------------------------------------ run

    def start(self) -> None:
        """Start the triggers in force. Their deploys have been answered before."""
        self._started = True
        self.update()
        self._supervisor.on_deployed()

    async def close(self) -> None:
        """Stop all triggers."""
        await self._supervisor.close()

    def update(self) -> None:
        """Start and stop triggers after deployments or partitions have changed."""
        if not self._started:
            return
        wanted = self._wanted()
        here = {n: w for n, w in wanted.items() if trigger_class(w.kind).runs_everywhere or self._ownership.owns(n)}
        elsewhere = {n: (w, self._ownership.owner_label(n)) for n, w in wanted.items() if n not in here}
        self._supervisor.update(here, elsewhere)
        if self._context.log.shared:  # another server may have answered the deploy
            self._supervisor.on_deployed([n for n, w in here.items() if w.label not in self._deploying])

    async def _emit(self, events: Sequence[Event]) -> None:
        trigger = str(events[0].extensions.get("oncuetrigger", "")) if events else ""
        chains = self._chains_of(trigger)
        traced, files = await chains.trace(events)
        await self._events.append(traced)
        chains.stored(files)

    def _chains_of(self, trigger: str) -> FileChains:
        """Return the chains of the trigger's owner."""
        owner = self._supervisor.owner(trigger)
        if owner not in self._chains:
            self._chains[owner] = FileChains(self._context.view.runs)
        return self._chains[owner]

    def _replicated_state(self, name: str) -> LogReplicatedState | None:
        return LogReplicatedState(self._context.log, name) if self._context.log.shared else None

    def _wanted(self) -> dict[str, DesiredTrigger]:
        made = {}
        for label, ruleset in self._deployed.rulesets.items():
            deployment = self._deployed.deployments[label]
            rights = rights_of(
                deployment.owner, self._deployed.is_by_admin(deployment), self._context.settings.trigger_roots
            )
            before = self._made.get(label)
            if before is not None and before.deployment is deployment and before.rights == rights:
                made[label] = before
            else:
                made[label] = _Made(deployment, rights, _desired(ruleset, deployment, rights))
        self._made = made
        return {want.name: want for found in made.values() for want in found.triggers}

    # ------------------------------------------------------------ deploys

    def deploying(self, labels: Iterable[str]) -> None:
        """Note deploys that this server is about to record.

        Their triggers wait with new items until `deployed`.
        """
        self._deploying.update(labels)

    def deployed(self, labels: Iterable[str], names: Iterable[str] = ()) -> None:
        """Note that the deploys of these labels are being answered.

        From now on, arriving items of the triggers `names` are new.
        """
        self._supervisor.on_deployed(names)
        self._deploying.difference_update(labels)

    async def initial_scans(self, names: Iterable[str], bearer: str) -> list[r.TriggerInfo]:
        """Return the states of triggers after their initial scans, on any server.

        A trigger that cannot scan now does not delay the answer. Waits at most LOOK_S seconds.
        """
        states: dict[str, r.TriggerInfo] = {}
        left = names = set(names)
        try:
            async with asyncio.timeout(LOOK_S):
                while left:
                    here = self._supervisor.running(left)
                    await self._supervisor.initial_scan(here, LOOK_S)
                    left = left - self._supervisor.running(here)  # the others have moved
                    left = {info.name for info in self._supervisor.infos(left)}
                    states |= await self._states_elsewhere(left, bearer)
                    left = {n for n in left if n not in states or _may_scan(states[n])}
                    if left:
                        await asyncio.sleep(ASK_S)
        except TimeoutError:
            pass
        return [_known(info, states) for info in self._supervisor.infos(names)]

    async def _states_elsewhere(self, names: Iterable[str], bearer: str) -> dict[str, r.TriggerInfo]:
        """Return the states of triggers that other servers run. Asks each server once."""
        wanted = set(names)
        urls = sorted({self._ownership.owner_url(n) for n in wanted} - {""})
        answers = await asyncio.gather(*(self._peers.triggers(url, bearer) for url in urls))
        return {
            info.name: msgspec.structs.replace(info, server=url)
            for url, infos in zip(urls, answers, strict=True)
            for info in infos
            if info.name in wanted and info.state != "elsewhere"
        }

    # ------------------------------------------------------------ look up

    async def infos(self) -> list[r.TriggerInfo]:
        """Return the states of all triggers, as this server knows them."""
        describe = self._supervisor.describer()
        return await off_loop_if(
            len(self._supervisor) > MANY_TRIGGERS, lambda: [self._with_note(info) for info in describe()]
        )

    def _with_note(self, info: r.TriggerInfo) -> r.TriggerInfo:
        """Add to a trigger's detail what is known of a loop that was stopped.

        For any thread.
        """
        chains = self._chains.get(self._supervisor.owner(info.name))
        note = chains.note(info.name) if chains is not None else ""
        return msgspec.structs.replace(info, detail="; ".join(filter(None, (info.detail, note)))) if note else info

    async def not_running(self, names: Iterable[str] | None = None) -> list[r.TriggerInfo]:
        """Return those of these triggers (None: all) that should run here and do not."""
        describe = self._supervisor.describer(names)
        infos = await off_loop_if(names is None and len(self._supervisor) > MANY_TRIGGERS, describe)
        return [t for t in infos if t.state not in ("running", "elsewhere")]

    async def all(self, caller: Caller, bearer: str = "") -> list[r.TriggerInfo]:
        """Return the triggers that the caller may see.

        With `bearer`, the servers that run them are asked.
        """
        if not bearer and self._context.log.shared:  # a peer asks; it may have deployed just before
            await self._deployed.sync()
        visible = [info for info in await self.infos() if self._sees(caller, info)]
        states = await self._states_elsewhere([info.name for info in visible if info.state == "elsewhere"], bearer)
        return [_known(info, states) for info in visible]

    async def get(self, caller: Caller, name: str, bearer: str = "") -> r.TriggerShown:
        """Return a trigger with its recent decisions. Raises NotFound."""
        info = await self._one(caller, name)
        url = self._runs_at(info)
        if (answer := await self._peers.trigger(url, name, bearer)) is not None:
            return msgspec.structs.replace(answer, server=url)
        return r.TriggerShown(**msgspec.structs.asdict(info), decisions=self._supervisor.decisions(name))

    async def explain(self, caller: Caller, name: str, path: str, bearer: str = "") -> r.TriggerFile:
        """Explain why a file fired, or did not.

        Raises NotFound, TriggerFailed, Invalid.
        """
        info = await self._one(caller, name)
        url = self._runs_at(info)
        answer = await self._peers.trigger_file(url, name, path, bearer)
        return answer if answer is not None else await self._supervisor.explain(name, path)

    async def backfill(self, caller: Caller, name: str, request: r.BackfillRequest, bearer: str = "") -> r.Backfilled:
        """Let files fire that existed before the trigger.

        Raises NotFound, TriggerFailed, Invalid.
        """
        self._context.check_accepting()
        url = self._runs_at(await self._one(caller, name))
        answer = await self._peers.backfill(url, name, request, bearer)
        return answer if answer is not None else await self._supervisor.backfill(name, request)

    async def previews(self, rules: RuleSet, path: str) -> list[str]:
        """Return what a deploy of these triggers will do with files that exist."""
        left, notes = PREVIEW_S, []
        for spec in rules.triggers:
            began = time.monotonic()
            options = trigger_class(spec.kind).resolve_paths(spec.options, Path(path).parent) if path else spec.options
            if note := await self._supervisor.preview(spec.name, spec.kind, options, max(0.1, left)):
                notes.append(f"trigger {spec.name}: {note}")
            left -= time.monotonic() - began
        return notes

    def _sees(self, caller: Caller, info: r.TriggerInfo) -> bool:
        return info.label in self._deployed.rulesets and self._deployed.visible(caller, info.label)

    def _runs_at(self, info: r.TriggerInfo) -> str:
        """Return the URL of the server that runs the trigger; "" for here or nowhere."""
        return self._ownership.owner_url(info.name) if info.state == "elsewhere" else ""

    async def _one(self, caller: Caller, name: str) -> r.TriggerInfo:
        found = next((self._with_note(i) for i in self._supervisor.infos([name]) if self._sees(caller, i)), None)
        if found is None:
            visible = (info.name for info in await self.infos() if self._sees(caller, info))
            names = ", ".join(islice(visible, 20))
            remedy = f"there are: {names}" if names else "oncue deploy FILE"
            raise NotFound(f"there is no trigger {name!r}", remedy=remedy)
        return found

    # ------------------------------------------------------------ webhooks

    async def receive(self, trigger: str, headers: Mapping[str, str], body: bytes) -> HookAnswer:
        """Pass a request to a webhook.

        Raises NotFound, NotReady, Unauthorized, TriggerFailed.
        """
        self._context.check_accepting()
        await self._await_webhook(trigger)
        return await self._supervisor.webhook(trigger).receive(headers, body)

    async def handshake(self, trigger: str, headers: Mapping[str, str]) -> HookAnswer:
        """Answer a sender that asks a webhook whether it may send.

        Raises NotFound, NotReady, Forbidden, TriggerFailed.
        """
        await self._await_webhook(trigger)
        return self._supervisor.webhook(trigger).handshake(headers)

    async def _await_webhook(self, trigger: str) -> None:
        """Wait for a webhook that another server has just deployed. Raises NotReady."""
        if self._deployed.off:
            raise NotReady(WITHOUT_RULES, remedy="send it again later; the admin starts the server with its rules")
        if not self._supervisor.receives(trigger) and await self._sync_registry():
            await self._supervisor.initial_scan([trigger], FIRST_S)


def _desired(ruleset: RuleSet, deployment: Deployment, rights: Rights) -> list[DesiredTrigger]:
    found = []
    for spec in ruleset.triggers:
        options = spec.options
        if deployment.path:
            options = trigger_class(spec.kind).resolve_paths(options, Path(deployment.path).parent)
        found.append(
            DesiredTrigger(spec.name, spec.kind, options, deployment.label, deployment.at_us, deployment.owner, rights)
        )
    return found


def _known(info: r.TriggerInfo, states: dict[str, r.TriggerInfo]) -> r.TriggerInfo:
    """Return the state from the trigger's own server, if another server runs it."""
    return states.get(info.name, info) if info.state == "elsewhere" else info


def _may_scan(info: r.TriggerInfo) -> bool:
    return not info.looked and info.state in NOT_YET
