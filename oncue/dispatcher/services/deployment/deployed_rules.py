"""Rule files in force: deployments, parsed rules, and the engine.

registry ──► view ──► reload ──► engine (stateless rules)
                             └─► `on_reload` callbacks (stateful rules, triggers)
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.context import ServerContext
from oncue.dispatcher.services.deployment.rule_file_parser import ParsedDeployment, RuleFileParser
from oncue.errors import NotFound, OncueError
from oncue.protocol import payload
from oncue.protocol.records import Deployment
from oncue.protocol.topics import REGISTRY
from oncue.rules.active_rules import ActiveRule
from oncue.rules.engine import Engine
from oncue.rules.evaluation.judge import pause_of
from oncue.rules.evaluation.trials import TrialFile
from oncue.rules.outcomes.outcome_batches import OutcomeBatches
from oncue.rules.parsing.rule_file import RuleSet

log = logging.getLogger("oncue.rules")
MANY_RULES = 1_000
WITHOUT_RULES = "rules and triggers are off: the server was started --without-rules; start it anew without that"
TRIALS = "rules-on-trial.json"  # in the data folder
REGISTRY_S = 5.0  # how long a batch of events waits for the registry


class DeployedRules:
    """The newest deployment of each label. `start`, then `close`."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self.engine = Engine(
            context.log,
            context.registry,
            before_batch=self.sync,
            offload=self.offload,
            record_pause=self._record_pause,
            trials=TrialFile(context.settings.data_path / TRIALS),
        )
        self.off = context.settings.without_rules  # no rule is read, and nothing fires
        self.deployments: dict[str, Deployment] = {}
        self.rulesets: dict[str, RuleSet] = {}
        self.parser = RuleFileParser()
        self._admins: set[str] = set()  # who had a token of an admin
        self._parsed: dict[str, ParsedDeployment] = {}  # label -> rules, and why there are none
        self._on_reload: list[Callable[[], None]] = []
        self._reloading = asyncio.Lock()
        self._in_force: tuple[object, ...] = ()  # what the last reload found
        self._position = -1  # offset in the registry up to which the deployments are in force
        self._starting = asyncio.Lock()
        self._engine_tasks: list[asyncio.Task[None]] = []

    def on_reload(self, callback: Callable[[], None]) -> None:
        """Call `callback` after each reload."""
        self._on_reload.append(callback)

    def is_by_admin(self, deployment: Deployment) -> bool:
        """Return True if an admin deployed it. Records of older versions do not say so."""
        return deployment.owner in self._admins if deployment.by_admin is None else deployment.by_admin

    # ------------------------------------------------------------ run

    def start(self) -> None:
        """Run the engine, if rules are on. Call `reload` before."""
        if self.off:
            log.warning("%s; events are stored, and the next start without the flag tests them", WITHOUT_RULES)
            return
        outcomes = OutcomeBatches(self._context.view, self._context.registry.endpoint_name)
        self._engine_tasks = [
            asyncio.create_task(self._run_engine(run), name="rules")
            for run in (self.engine.run, lambda: self.engine.run_outcomes(outcomes))
        ]

    async def _run_engine(self, run: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                async with self._starting:
                    await self.engine.judge.pause_left(self.engine.active_rules.entries.values())
                await run()
            except asyncio.CancelledError:
                raise
            except Exception:
                log.exception("the rule engine failed; it starts again from its last commit")
            await asyncio.sleep(1.0)

    async def close(self) -> None:
        """Stop the engine. Close it after the stateful rules, which use its evaluator."""
        for task in self._engine_tasks:
            task.cancel()
        await asyncio.gather(*self._engine_tasks, return_exceptions=True)

    # ------------------------------------------------------------ reload

    async def reload(self) -> None:
        """Put in force what the view has: after a deploy, a switch, a start."""
        view = self._context.view
        async with self._reloading:
            position = self._registry_position()
            deployments = {d.label: self._kept(d) for d in await view.deployments()}
            switches = await view.switches()
            if any(d.by_admin is None for d in deployments.values()):  # of an older version
                self._admins = {t.subject for t in await view.tokens() if "admin" in t.scopes}
            in_force = deployments, switches, self._admins
            if in_force == self._in_force:  # an endpoint, token or function is new
                self._position = position
                return
            fresh = 0
            if self.off:  # no text is read: it may be what keeps the server from working
                self.deployments = deployments
            elif deployments != self.deployments:
                changed = [d for label, d in deployments.items() if self.deployments.get(label) != d]
                parsed = self._parsed | await self.parser.deployed(changed)
                self._parsed = {label: parsed[label] for label in deployments}
                fresh = sum(len(parsed[d.label].rules.rules) for d in changed)
                self.deployments = deployments
                self.rulesets = {label: found.rules for label, found in self._parsed.items()}
            readable = {label: found.rules for label, found in self._parsed.items() if not found.why}
            active = [] if self.off else list(deployments.values())
            await asyncio.to_thread(self.engine.update, active, switches, readable)
            if fresh >= MANY_RULES:
                gc.freeze()  # else the collector holds the loop while it looks at all of them
            for callback in self._on_reload:
                callback()
            self._in_force, self._position = in_force, position

    def _kept(self, d: Deployment) -> Deployment:
        """Return the object that an equal deployment has already."""
        kept = self.deployments.get(d.label)
        return kept if kept == d and kept is not None else d

    async def sync(self) -> None:
        """Put in force every deploy that any server has acknowledged by now."""
        context = self._context
        await context.view.wait_for(await context.log.end_offsets((REGISTRY,)), REGISTRY_S)
        if self._position < self._registry_position():
            await context.reload()
            await self.reload()

    def _registry_position(self) -> int:
        return self._context.view.positions().get((REGISTRY, 0), 0)

    # ------------------------------------------------------------ pauses

    async def _record_pause(self, entry: ActiveRule, why: str) -> bool:
        """Record that the engine has paused a rule; False: it is paused here only."""
        name = entry.rule.name
        try:
            await self._context.record([(f"switch:{name}", pause_of(entry, why))])
            await self.reload()
        except OncueError as e:
            log.error("the pause of the rule %r could not be recorded: %s", name, e)
            return False
        return True

    def resumed(self, name: str) -> None:
        """Forget what is known of a rule's cost, because a person has enabled it."""
        if (entry := self.engine.active_rules.entries.get(name)) is not None:
            self.engine.judge.resumed(entry)

    # ------------------------------------------------------------ for engine and stateful rules

    async def offload(self, packed: bytes) -> bytes:
        """Store large arguments as a blob; returns the packed reference."""
        sha = await asyncio.to_thread(self._context.blobs.put, packed)
        return payload.pack_ref(payload.Ref(sha, len(packed)))

    async def version(self, label: str, version: int) -> Deployment | None:
        """Return an older deployment of a label that was not a removal."""
        found = await self._context.view.deployment_version(label, version)
        return None if found is None or found.removed else found

    # ------------------------------------------------------------ look up

    def visible(self, caller: Caller, label: str) -> bool:
        """Return True if the caller may see the deployment of this label."""
        found = self.deployments.get(label)
        return found is not None and caller.sees(found.owner)

    def rules_of(self, owner: str, besides: Collection[str]) -> list[RuleSet]:
        """Return the rule files of one owner, without some labels."""
        return [
            rules
            for label, rules in self.rulesets.items()
            if label not in besides and self.deployments[label].owner == owner
        ]

    def owner_of(self, kind: str, item: Mapping[str, Any]) -> str:
        """Return the owner of a live item (live_feed.py); "" if nobody is known.

        Records of a rule's switch and states of a trigger do not name it.
        """
        if "owner" in item:
            return str(item["owner"])
        if kind == "rule":
            entry = self.engine.active_rules.entries.get(item["name"])
            return entry.deployment.owner if entry else ""
        found = self.deployments.get(item.get("label", ""))
        return found.owner if found else ""

    def unreadable(self) -> list[tuple[Deployment, str]]:
        """Return the deployments whose rules do not fire, because they cannot be read."""
        broken = dict.fromkeys(self.deployments, WITHOUT_RULES) if self.off else self.engine.active_rules.broken
        return [(self.deployments[label], why) for label, why in broken.items() if label in self.deployments]

    def no_label(self, caller: Caller, label: str) -> NotFound:
        """Return the error for an unknown label, with the labels the caller may see."""
        labels = ", ".join(sorted(known for known in self.deployments if self.visible(caller, known)))
        return NotFound(
            f"there is no rule file {label!r}", remedy=f"there are: {labels}" if labels else "oncue deploy FILE"
        )
