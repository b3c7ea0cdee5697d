"""ActiveRules: all deployed rules, compiled.

Immutable; a deploy makes a new one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from oncue.errors import OncueError
from oncue.protocol import payload
from oncue.protocol.records import VERSION, Call, Deployment, Event, RuleSwitch
from oncue.rules.evaluation.rule_source import rule_hash
from oncue.rules.explain import decide
from oncue.rules.matching.index import Index
from oncue.rules.operators.chain import OperatorChain
from oncue.rules.parsing.rule_file import Rule, RuleSet, parse
from oncue.rules.parsing.rule_run import RuleRun
from oncue.rules.rule_cost import RuleCost


class Unevaluated(NamedTuple):
    """An event for which the condition of a rule could not be evaluated."""

    why: str = ""
    source: str = ""
    id: str = ""
    at_us: int = 0


class RuleCounters:
    """Counters of one rule since the server started; they survive redeploys."""

    __slots__ = (
        "doubles",
        "empty",
        "failed",
        "fired",
        "last_reason",
        "matched",
        "of",
        "shadow",
        "suppressed",
        "unevaluated",
        "unknown",
    )

    def __init__(self) -> None:
        self.matched = self.fired = self.failed = 0  # events that matched; tasks made; dead letters
        self.doubles = 0  # tasks that existed before: of repeated events
        self.suppressed = 0  # events that matched and were suppressed
        self.shadow = 0  # firings that ran nothing: `mode: shadow`
        self.empty = 0  # firings that made no task: the list of `for_each` was empty
        self.unevaluated = 0  # events for which `when` could not be evaluated
        self.unknown = Unevaluated()  # the last of them, under the active version
        self.last_reason = ""  # of the newest dead letter of the active version
        self.of = ("", 0)  # that version: label, number

    @property
    def new_tasks(self) -> int:
        """Return the number of tasks that did not exist before."""
        return max(0, self.fired - self.doubles)


class Action:
    """One function that a deployed rule runs.

    Holds the common part of its tasks, and renders their arguments.
    """

    __slots__ = ("_constant", "_run", "call", "endpoint", "expires_ms", "has_affinity", "owner")

    def __init__(self, rule: Rule, run: RuleRun, deployment: Deployment) -> None:
        self.endpoint, self.owner, self.expires_ms, self._run = run.endpoint, deployment.owner, rule.expires_ms, run
        self.call = Call(
            VERSION,
            deployment.functions.get(run.function, ""),
            "",
            deployment.owner,
            # "tomo.py:reconstruct" is registered as "reconstruct".
            run.function.rpartition(":")[2] if run.is_own else run.function,
            rule.name,
            deployment.version,
            rule.retry,
            run.timeout_ms,
            run=run.options,
            firing_tasks=len(rule.runs) if rule.operators is not None and rule.operators.limiters else 0,
            priority=rule.priority,
        )
        self.has_affinity = run.affinity is not None
        self._constant = packed_arguments(run.args.render(_NOTHING)) if run.args.constant else b""

    def arguments(self, source: Any) -> bytes:
        """Return the payload for one of `task_sources`.

        Raises Invalid.
        """
        return self._constant or packed_arguments(self._run.args.render(source))

    def affinity(self, source: Any) -> str:
        """Return the affinity key for one of `task_sources`; "": none.

        Raises Invalid.
        """
        return self._run.affinity_key(source)


MODE_WHY = {
    "shadow": "`mode: shadow` in its file: it is counted, and runs nothing",
    "paused": "`mode: paused` in its file: what fires waits until a deploy with another mode",
}
CLOCKS_MS = 1_000  # by which the clocks of servers may differ
REMOVED_KEPT = 1_000  # removed rules whose counts are remembered, in case they are deployed again
_NOTHING = Event(id="", source="", type="")


def packed_arguments(args: Any) -> bytes:
    """Return the payload of a task's arguments. Raises Invalid."""
    return payload.pack([[], args] if isinstance(args, dict) else [list(args), {}], as_data=True)


class ActiveRule:
    """One deployed rule.

    `paused`: why the server does not test it any more; "": it is tested. `inline_bytes`: the size
    of events up to which it is certainly tested in a few milliseconds; -1: not known yet, or
    paused.
    """

    __slots__ = (
        "_hash",
        "actions",
        "counters",
        "deployment",
        "disabled_because",
        "has_items",
        "inline_bytes",
        "known_cost",
        "paused",
        "rule",
    )

    def __init__(
        self,
        rule: Rule,
        deployment: Deployment,
        counters: RuleCounters,
        disabled_because: str,
        paused: str = "",
        known_cost: RuleCost | None = None,
    ) -> None:
        self.rule, self.deployment, self.counters, self.disabled_because = rule, deployment, counters, disabled_because
        self.actions = tuple(Action(rule, run, deployment) for run in rule.runs)
        self.has_items = rule.has_items
        self.paused, self.known_cost, self._hash = paused, known_cost, ""
        self.inline_bytes = known_cost.all if known_cost is not None and not paused else -1

    @property
    def since_us(self) -> int:
        """Return since when a rule on outcomes is in force."""
        return self.deployment.since_us.get(self.rule.name, self.deployment.at_us)

    def cost(self) -> RuleCost:
        """Return the bounds of the rule's cost, and note them in `inline_bytes`."""
        if self.known_cost is None:
            self.known_cost = RuleCost(self.rule)
        if not self.paused:
            self.inline_bytes = self.known_cost.all
        return self.known_cost

    def hash(self) -> str:
        """Return the hash of the rule's text."""
        if not self._hash:
            self._hash = rule_hash(self.rule)
        return self._hash

    def pause(self, reason: str) -> None:
        """Test the rule no more."""
        self.paused, self.inline_bytes = reason, -1

    @property
    def state(self) -> tuple[str, str]:
        """Return (active, disabled or paused; reason, and what to do)."""
        if self.disabled_because:
            return "disabled", self.disabled_because
        if not self.paused and self.rule.mode != "on":
            return self.rule.mode, MODE_WHY[self.rule.mode]
        return ("paused", f"{self.paused}; {self.repair}") if self.paused else ("active", "")

    @property
    def repair(self) -> str:
        """Return what ends a pause."""
        return f"correct the rule and deploy it, or `oncue rules resume {self.rule.name}`"


class ActiveRules:
    def __init__(self, entries: Iterable[ActiveRule] = (), broken: Mapping[str, str] | None = None) -> None:
        self.entries: dict[str, ActiveRule] = {}
        self.broken = dict(broken or {})  # label -> why this version cannot read its text
        for entry in entries:
            if entry.rule.name in self.entries:
                other = self.entries[entry.rule.name].deployment.label
                self.broken[entry.deployment.label] = f"its rule {entry.rule.name!r} is in {other!r} already"
            else:
                self.entries[entry.rule.name] = entry
        enabled = [e for e in self.entries.values() if not e.disabled_because]
        self.owners = {e.deployment.owner for e in enabled}
        self.limited = {name: e for name, e in self.entries.items() if e.rule.node_hours is not None}
        self._index = Index([(e, e.rule.conditions) for e in enabled if e.rule.follows is None])
        following = [e for e in enabled if e.rule.follows is not None]
        self._outcomes = Index([(e, e.rule.conditions) for e in following])
        self._limit_any = any(e.rule.operators is not None and e.rule.operators.limiters for e in enabled)
        self._followed: dict[str, set[str]] = {}  # owner -> rules whose outcomes are events; "": of any task
        for e in following:
            self._followed.setdefault(e.deployment.owner, set()).update(e.rule.follows or ("",))

    def candidates(self, event: Event) -> list[ActiveRule]:
        return self._index.candidates(event)

    def outcome_candidates(self, event: Event, at_ms: int) -> list[ActiveRule]:
        """Return the rules on outcomes that may fire for one that was stored at this time.

        They are those of its owner, and they were in force: results may be read from long ago.
        """
        owner, at_us = event.data["owner"], (at_ms + CLOCKS_MS) * 1_000
        found = self._outcomes.candidates(event)
        return [e for e in found if e.deployment.owner == owner and e.since_us <= at_us]

    @property
    def follow_any(self) -> bool:
        """True if a rule is about outcomes, or counts those of its tasks."""
        return bool(self._followed) or self._limit_any

    def follow(self, call: Call) -> bool:
        """Return True if a rule is about outcomes of tasks with this call."""
        rules = self._followed.get(call.owner)
        return rules is not None and (call.rule in rules or "" in rules)

    def matching(self, event: Event) -> list[ActiveRule]:
        """Return the rules that fire for the event, in the order of their deployment."""
        return [entry for entry in self._index.candidates(event) if decide(entry.rule, event) is None]


class RuleCompiler:
    """Compiles deployments to ActiveRules; parses each text once.

    What has not changed is used again: 10,000 rules that are made and freed at once would hold the
    interpreter.
    """

    def __init__(self) -> None:
        self._live: dict[str, Deployment] = {}
        self._entries: dict[str, ActiveRule] = {}
        self._read: dict[tuple[str, int, str], RuleSet | str] = {}
        self._counters: dict[str, RuleCounters] = {}
        self._switched: dict[str, RuleSwitch] = {}
        #: Name -> (rule as read, when a person has resumed it, the rule with that time).
        self._resumed: dict[str, tuple[Rule, int, Rule]] = {}
        self._paused: dict[str, tuple[str, str]] = {}  # rule -> its hash, and why: also if it could not be recorded

    def compile(
        self,
        deployments: Iterable[Deployment],
        switches: Iterable[RuleSwitch] = (),
        parsed: Mapping[str, RuleSet] | None = None,
    ) -> ActiveRules:
        """Compile the newest deployment of each label.

        `parsed`: label -> rules that are parsed already; other texts are parsed here. The last
        switch of a rule overrides its `enabled`; one that enables it ends a pause. So does a deploy
        that changes the rule.
        """
        newest: dict[str, Deployment] = {}
        for d in deployments:
            if d.label not in newest or d.version >= newest[d.label].version:
                newest[d.label] = d
        live = [self._kept(d) for d in newest.values() if not d.removed]
        self._live = {d.label: d for d in live}
        ready = parsed or {}
        self._read = {
            key: self._read.get(key) or ready.get(d.label) or _read(d)
            for d in live
            if (key := (d.label, d.version, d.text))
        }
        by_rule = {s.rule: s for s in switches}
        entries: list[ActiveRule] = []
        broken: dict[str, str] = {}
        for d in live:
            ruleset = self._read[d.label, d.version, d.text]
            if isinstance(ruleset, str):
                broken[d.label] = ruleset
            else:
                entries += [self._entry(rule, d, by_rule.get(rule.name)) for rule in ruleset.rules]
        self._switched = by_rule
        self._entries = {entry.rule.name: entry for entry in entries}
        if len(self._counters) > REMOVED_KEPT + len(self._entries):
            self._counters = {name: entry.counters for name, entry in self._entries.items()}
            self._paused = {name: found for name, found in self._paused.items() if name in self._entries}
            self._resumed = {name: found for name, found in self._resumed.items() if name in self._entries}
        return ActiveRules(entries, broken)

    def _kept(self, d: Deployment) -> Deployment:
        """Return the object that an equal deployment has already."""
        kept = self._live.get(d.label)
        return kept if kept is not None and kept == d else d

    def _entry(self, rule: Rule, d: Deployment, switch: RuleSwitch | None) -> ActiveRule:
        if rule.operators is not None and rule.operators.pauses:
            since_us = max(d.at_us, switch.at_us if switch is not None and switch.enabled else 0)
            rule = self._with_resume(rule, rule.operators, since_us // 1000)
        counters = self._counters.setdefault(rule.name, RuleCounters())
        if counters.of != (d.label, d.version):  # its cause may be fixed
            counters.of, counters.last_reason, counters.unknown = (d.label, d.version), "", Unevaluated()
        disabled_because = "" if rule.enabled else "`enabled: false` in its file"
        if switch is not None and not switch.pauses:
            why = f": {switch.why}" if switch.why else ""
            disabled_because = "" if switch.enabled else f"disabled by {switch.by or 'hand'}{why}"
            if switch.enabled and switch != self._switched.get(rule.name):
                self._paused.pop(rule.name, None)
        paused = self._pause(rule, switch)
        entry = self._entries.get(rule.name)
        if entry is None or entry.rule is not rule:
            return ActiveRule(rule, d, counters, disabled_because, paused)
        if entry.deployment is d and (entry.disabled_because, entry.paused) == (disabled_because, paused):
            return entry
        return ActiveRule(rule, d, counters, disabled_because, paused, entry.known_cost)

    def _with_resume(self, rule: Rule, operators: OperatorChain, at_ms: int) -> Rule:
        """Return the rule with the time of its resume: the same object each time."""
        known = self._resumed.get(rule.name)
        if known is None or known[0] is not rule or known[1] != at_ms:
            made = msgspec.structs.replace(rule, operators=operators.resumed(at_ms))
            known = self._resumed[rule.name] = (rule, at_ms, made)
        return known[2]

    def _pause(self, rule: Rule, switch: RuleSwitch | None) -> str:
        """Return why the rule is paused, in the text that it has now; "": it is not."""
        recorded = (switch.pauses, switch.why) if switch is not None and switch.pauses else None
        paused = self._paused.get(rule.name) or recorded
        return paused[1] if paused is not None and paused[0] == rule_hash(rule) else ""

    def pause(self, entry: ActiveRule, reason: str) -> None:
        """Pause a rule of this version of its text, now and in all rules compiled later."""
        self._paused[entry.rule.name] = (entry.hash(), reason)
        entry.pause(reason)


def _read(deployment: Deployment) -> RuleSet | str:
    """Parse a deployed text; return the error if another version wrote it.

    Its trigger names were checked against all files when it was deployed.
    """
    try:
        return parse(deployment.text, deployment.label, triggers=None, stored=True)
    except OncueError as e:
        return str(e)
