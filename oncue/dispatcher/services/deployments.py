"""Rule files: deployed as a whole or not at all, explained, rolled back; and the engine and triggers that run them.

deploy ──parse, check, diff──► Deployment (one record a file, all in one append) ──► view ──► engine and trigger host
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.services.bindings import function_changes, users
from oncue.dispatcher.services.origins import check_origins, same_origin
from oncue.dispatcher.services.triggers import TriggerDesk
from oncue.dispatcher.trigger_supervisor import TriggerSupervisor
from oncue.errors import Conflict, Forbidden, Invalid, NotFound, OncueError
from oncue.ids import now_us
from oncue.protocol import api as r
from oncue.protocol.records import VERSION, Deployment, Event, FunctionRecord, RuleSwitch
from oncue.protocol.topics import REGISTRY
from oncue.rules.engine import Engine
from oncue.rules.parsing.argument_check import check_arguments
from oncue.rules.parsing.rule_file import RuleSet, check_unique, parse
from oncue.rules.testing.runner import RuleDifference, diff
from oncue.rules.yaml_document import Problems
from oncue.triggers.catalog import OptionStructs

log = logging.getLogger("oncue.rules")


class RuleDesk(TriggerDesk):
    # ------------------------------------------------------------ running

    async def start_rules(self, folder: Path) -> None:
        self.engine = Engine(self.log, self, before_batch=self._registry_caught_up, offload=self._offload)
        self.triggers_host = TriggerSupervisor(self.emit_from_trigger, folder, self.trigger_memory)
        self._deployments, self._sets = {}, {}
        self._reloading = asyncio.Lock()
        self._rules_of = -1  # the offset in the registry up to which they are in force
        self._answering = set()
        self._changing = asyncio.Lock()  # what a deploy compares itself with stays as it is until it is in force
        await self.reload_rules()
        self.triggers_host.on_deployed()  # the deploys of an earlier process are nobody's any more
        self._engine_task = asyncio.create_task(self._keep_engine(), name="rules")
        await self.start_windows(folder.parent / "windows.db")

    async def _keep_engine(self) -> None:
        while True:
            try:
                await self.engine.run()
            except asyncio.CancelledError:
                raise
            except Exception:
                log.exception("the rule engine failed; it starts again from its last commit")
            await asyncio.sleep(1.0)

    async def stop_rules(self) -> None:
        await self.triggers_host.close()
        self._engine_task.cancel()
        await asyncio.gather(self._engine_task, return_exceptions=True)
        await self.stop_windows()

    async def reload_rules(self) -> None:
        """Take what is in force from the view: after a deploy, a switch, a start."""
        if not hasattr(self, "engine"):
            return  # the registry is read before rules start
        async with self._reloading:
            position = self._registry_position()
            deployments = {d.label: d for d in await self.view.deployments()}
            switches = await self.view.switches()
            # Reading YAML takes about 1 ms a rule: not on the loop.
            if deployments != self._deployments:
                known = {
                    label: self._sets[label] for label, d in deployments.items() if self._deployments.get(label) == d
                }
                changed = [d for d in deployments.values() if d.label not in known]
                fresh = await asyncio.to_thread(lambda: {d.label: self._read(d) for d in changed})
                self._deployments, self._sets = deployments, known | fresh
            await asyncio.to_thread(self.engine.update, list(deployments.values()), switches)
            if hasattr(self, "windows"):
                self.windows.wake()
            self._update_triggers()
            self._rules_of = position

    def _read(self, d: Deployment) -> RuleSet:
        try:
            return parse(d.text, d.label, OptionStructs(), triggers=None)
        except OncueError as e:  # deployed by another version, whose rules this one does not know
            log.error("the deployed rule file %s cannot be read: %s", d.label, e)
            return RuleSet(d.label, d.text, (), ())

    def _registry_position(self) -> int:
        return self.view.positions().get((REGISTRY, 0), 0)

    async def _registry_caught_up(self) -> None:
        """A deploy that was acknowledged, by whatever server, is in force for later events."""
        await super()._registry_caught_up()
        if self._rules_of < self._registry_position():
            await self.reload()
            await self.reload_rules()

    # ------------------------------------------------------------ deploying

    async def deploy(self, who: Caller, request: r.DeployRequest, bearer: str = "") -> list[r.Deployed]:
        self.accepting()
        async with self._changing:
            await self._registry_caught_up()
            answers = await self._deploy(who, request)
        return answers if request.dry_run else await self._with_triggers(answers, bearer)

    async def _deploy(self, who: Caller, request: r.DeployRequest) -> list[r.Deployed]:
        if not request.files:
            raise Invalid("no rule file was given", remedy="oncue deploy FILE...")
        new = {f.label: f for f in request.files}
        if len(new) < len(request.files):
            raise Conflict(
                "two of the files have the same label",
                remedy="rename one, or deploy them one after the other, each with a --label",
            )
        for label in new:
            self._check_owner(who, label)
        others = [s for label, s in self._sets.items() if label not in new]
        elsewhere = {t.name for s in others for t in s.triggers}
        elsewhere |= {
            t for f in request.files for t in _trigger_names(f)
        }  # a rule may be on a trigger of a file beside it
        sets = {label: parse(f.text, f.path or label, OptionStructs(), triggers=elsewhere) for label, f in new.items()}
        check_unique([*others, *sets.values()])
        bound: dict[str, FunctionRecord] = {}
        for s in sets.values():
            bound |= await self._bind(who, s, request.functions)
            check_arguments(s, {name: f.parameters for name, f in bound.items()})
        plans = []
        for label, s in sets.items():
            functions = {name: bound[name].id for name in s.functions}
            plans.append(await self._plan(who, new[label], s, functions, request.note))
        answers = [answer for answer, _ in plans]
        if not request.dry_run:
            if not request.replace:
                check_origins(answers, new)
            entries = [(f"deployment:{record.label}", record) for _, record in plans if record is not None]
            await self._put_in_force(entries)
        return answers

    async def _plan(
        self, who: Caller, file: r.RuleFile, ruleset: RuleSet, functions: dict[str, str], note: str
    ) -> tuple[r.Deployed, Deployment | None]:
        """What deploying the file changes, and its record; None where it is in force as it is."""
        old = self._deployments.get(file.label)
        found = diff(self._sets.get(file.label), ruleset)
        changes = await function_changes(self.view, old, functions, who.subject)
        moved = old is not None and old.functions != functions
        replaces = "" if old is None or same_origin(old, file) else old.origin
        changed = old is None or old.text != ruleset.text or moved or bool(replaces)
        version = await self._next_version(file.label) if changed else (old.version if old else 1)
        answer = r.Deployed(
            label=file.label,
            version=version,
            changed=changed,
            added=list(found.added),
            changed_rules=_changed_rules(found, ruleset, changes),
            removed=list(found.removed),
            diff=found.text,
            functions=changes,
            replaces=replaces,
        )
        record = Deployment(
            VERSION,
            file.label,
            version,
            who.subject,
            ruleset.text,
            functions,
            now_us(),
            note,
            path=file.path,
            host=file.host,
        )
        return answer, record if changed else None

    async def _put_in_force(self, entries: list[tuple[str, Deployment]]) -> None:
        """The newest of each label is under its own key; each version also under one of its own, for the history."""
        both = [(f"{key}@{d.version}", d) for key, d in entries]
        self._answering.update(d.label for _, d in entries)
        if not both:
            return
        try:
            (position,) = await self.record_at(both)
            await self.reload_rules()
            if self.log.shared:
                await self._first_of_their_versions(entries, position.first)
        except BaseException:
            self._answering.difference_update(d.label for _, d in entries)
            raise

    async def _first_of_their_versions(self, entries: list[tuple[str, Deployment]], offset: int) -> None:
        """Two servers may have deployed a label at once, both as its next version: all see the same one first, and that one is
        put in force again, behind the other."""
        lost: list[tuple[str, Deployment]] = []
        for key, mine in entries:
            places = await self.view.deployment_places(mine.label)
            first = next((d for place, d in places if d.version == mine.version and place < offset), None)
            if first is not None:
                lost.append((f"{key}@{first.version}", first))
        if lost:
            await self.record(lost)
            await self.reload_rules()
            labels = ", ".join(d.label for _, d in lost)
            raise Conflict(
                f"{labels} was deployed through another server at the same moment, and that is in force",
                remedy="look at the difference (oncue deploy --dry-run), then deploy again",
            )

    async def _with_triggers(self, answers: list[r.Deployed], bearer: str) -> list[r.Deployed]:
        """The answers, once the deployments' triggers have told what was there before from what comes; also where nothing
        has changed: an earlier answer may have been lost."""
        names = {a.label: [t.name for t in self._sets[a.label].triggers] for a in answers if a.label in self._sets}
        every = [name for some in names.values() for name in some]
        try:
            told = {info.name: info for info in await self.initial_scans(every, bearer)}
        finally:
            self.triggers_host.on_deployed(every)
            self._answering.difference_update(a.label for a in answers)
        trouble = self.memory_trouble()
        remembering = {label for label, s in self._sets.items() if any(rule.operators for rule in s.rules)}
        return [
            msgspec.structs.replace(
                a,
                triggers=[told[n] for n in sorted(names.get(a.label, ())) if n in told],
                waits=trouble if a.label in remembering else "",
            )
            for a in answers
        ]

    def _check_owner(self, who: Caller, label: str) -> None:
        old = self._deployments.get(label)
        if old is not None and not who.sees(old.owner):
            raise Forbidden(f"the rule file {label!r} is {old.owner}'s", remedy="deploy yours under another --label")

    async def _next_version(self, label: str) -> int:
        history = await self.view.deployment_history(label)
        return max((d.version for d in history), default=0) + 1

    async def _bind(self, who: Caller, ruleset: RuleSet, given: Mapping[str, str]) -> dict[str, FunctionRecord]:
        """What its functions are from now on. Raises RuleFileError for all functions and endpoints that are not there."""
        problems = Problems(ruleset.file)
        bound: dict[str, FunctionRecord] = {}
        for run in (run for rule in ruleset.rules for run in rule.runs):
            try:
                bound[run.function] = bound.get(run.function) or await self._bound(who, run.function, given)
            except NotFound as e:
                problems.add(run.given.function, e.message, e.remedy)
            try:
                self.find_endpoint(who, run.endpoint)
            except (NotFound, Forbidden) as e:
                problems.add(run.given.endpoint, e.message, e.remedy)
        problems.check()
        return bound

    async def _bound(self, who: Caller, name: str, given: Mapping[str, str]) -> FunctionRecord:
        """What a rule's function means from now on."""
        wanted = given.get(name, name)
        found = await self.view.function(wanted, owner=who.subject)
        if found is None:
            raise NotFound(
                f"the function {name!r} is not registered",
                remedy="oncue deploy registers FILE.py:NAME by itself; a registered one is used by its name",
            )
        return found

    # ------------------------------------------------------------ looking

    async def rules(self, who: Caller, bearer: str = "") -> list[r.RuleInfo]:
        broken = {t.name: t for t in self.triggers_host.infos() if t.state not in ("running", "elsewhere")}
        mine = [_with_cause(info, broken) for info in self.engine.rules() if self._sees(who, info.label)]
        return await self.with_others(await self.with_windows(mine), bearer)

    async def rule(self, who: Caller, name: str, bearer: str = "") -> r.RuleInfo:
        mine = await self.rules(who, bearer)
        found = next((info for info in mine if info.name == name), None)
        if found is None:
            names = ", ".join(sorted(info.name for info in mine)[:20])
            raise NotFound(f"there is no rule {name!r}", remedy=f"there are: {names}" if names else "oncue deploy FILE")
        return found

    async def switch_rule(self, who: Caller, name: str, enabled: bool, why: str) -> r.RuleInfo:
        self.accepting()
        await self.rule(who, name)
        await self.record([(f"switch:{name}", RuleSwitch(VERSION, name, enabled, who.subject, why, now_us()))])
        await self.reload_rules()
        return await self.rule(who, name)

    async def explain(self, who: Caller, name: str, event: Event | None, offset: int | None) -> r.Explanation:
        await self.rule(who, name)
        if event is None:
            found = await self.view.event(offset or 0)
            if found is None:
                raise NotFound(f"there is no event at offset {offset}", remedy="oncue events list shows what there is")
            event = found.event
        explained = await self.with_preview(self.engine.explain(name, event), name, event)
        return msgspec.structs.replace(explained, fired=await self._fired(who, name, event))

    async def _fired(self, who: Caller, rule: str, event: Event) -> list[r.Fired]:
        """The tasks that this rule made for the event."""
        caused = await self.view.fired(event.source, event.id)
        mine = {task_id: call.rule_version for call, task_id in caused if call.rule == rule and who.sees(call.owner)}
        accepted = await self.view.accepted(list(mine)) if mine else {}
        return [r.Fired(task=i.hex(), at_us=accepted.get(i, 0), version=version) for i, version in mine.items()]

    # ------------------------------------------------------------ history

    async def _history(self, who: Caller, label: str) -> list[Deployment]:
        """What the caller may see of it, newest first. Raises NotFound."""
        found = [d for d in await self.view.deployment_history(label) if who.sees(d.owner)]
        if not found:
            raise self._no_label(who, label)
        return found

    def _no_label(self, who: Caller, label: str) -> NotFound:
        mine = ", ".join(sorted(known for known in self._deployments if self._sees(who, known)))
        return NotFound(
            f"there is no rule file {label!r}", remedy=f"there are: {mine}" if mine else "oncue deploy FILE"
        )

    async def rule_history(self, who: Caller, label: str) -> list[dict[str, Any]]:
        """Newest first."""
        return [
            {
                "label": d.label,
                "version": d.version,
                "owner": d.owner,
                "at_us": d.at_us,
                "note": d.note,
                "removed": d.removed,
                "text": d.text,
                "functions": d.functions,
                "path": d.path,
                "host": d.host,
            }
            for d in await self._history(who, label)
        ]

    async def rollback(
        self, who: Caller, label: str, version: int, dry_run: bool = False, bearer: str = ""
    ) -> r.Deployed:
        """An old version becomes a new one: the history only grows. With dry_run: what it would change."""
        self.accepting()
        async with self._changing:
            await self._registry_caught_up()
            done = await self._rollback(who, label, version, dry_run)
        return done if dry_run else (await self._with_triggers([done], bearer))[0]

    async def _rollback(self, who: Caller, label: str, version: int, dry_run: bool) -> r.Deployed:
        self._check_owner(who, label)
        old = next((d for d in await self._history(who, label) if d.version == version), None)
        if old is None or old.removed:
            raise NotFound(f"{label} has no version {version}", remedy=f"oncue rules history {label} shows them")
        others = [s for other, s in self._sets.items() if other != label]
        ruleset = parse(old.text, label, OptionStructs(), triggers=None)
        check_unique([*others, ruleset])
        found = diff(self._sets.get(label), ruleset)
        changes = await function_changes(self.view, self._deployments.get(label), old.functions, who.subject)
        number = await self._next_version(label)
        record = msgspec.structs.replace(
            old, version=number, at_us=now_us(), owner=who.subject, note=f"rolled back to version {version}"
        )
        if not dry_run:
            await self._put_in_force([(f"deployment:{label}", record)])
        return r.Deployed(
            label=label,
            version=number,
            changed=True,
            added=list(found.added),
            changed_rules=_changed_rules(found, ruleset, changes),
            removed=list(found.removed),
            diff=found.text,
            functions=changes,
        )

    async def remove_rules(self, who: Caller, label: str) -> r.Deployed:
        self.accepting()
        async with self._changing:
            await self._registry_caught_up()
            return await self._remove_rules(who, label)

    async def _remove_rules(self, who: Caller, label: str) -> r.Deployed:
        self._check_owner(who, label)
        old = self._deployments.get(label)
        if old is None:
            raise self._no_label(who, label)
        number = await self._next_version(label)
        gone = msgspec.structs.replace(old, version=number, at_us=now_us(), owner=who.subject, removed=True)
        names = [rule.name for rule in self._sets[label].rules]
        await self._put_in_force([(f"deployment:{label}", gone)])
        return r.Deployed(label=label, version=number, changed=True, removed=names)


def _changed_rules(found: RuleDifference, ruleset: RuleSet, changes: list[r.FunctionChange]) -> list[str]:
    """Those whose text is another, or whose functions are; new ones are told as added."""
    return sorted({*found.changed, *users(ruleset, changes)} - {*found.added})


def _trigger_names(file: r.RuleFile) -> Iterable[str]:
    """Names of the triggers of a file that may have errors: those are told when it is parsed for itself."""
    try:
        return [t.name for t in parse(file.text, file.label, None, triggers=None).triggers]
    except OncueError:
        return ()


def _with_cause(info: r.RuleInfo, broken: Mapping[str, r.TriggerInfo]) -> r.RuleInfo:
    """A rule whose trigger does not run says so."""
    names = [info.on] if isinstance(info.on, str) else info.on if isinstance(info.on, list | tuple) else ()
    found = [broken[name] for name in names if name in broken]
    if info.state != "active" or not found:
        return info
    why = "; ".join(f"its trigger {t.name} is {t.state}" + (f": {t.detail}" if t.detail else "") for t in found)
    return msgspec.structs.replace(info, why="; ".join(filter(None, (why, info.why))))
