"""Active rules compiled from deployments: versions, switches and counters."""

from __future__ import annotations

import json

from oncue.protocol.records import VERSION, Call, Deployment, Event, RuleSwitch
from oncue.rules.active_rules import REMOVED_KEPT, ActiveRules, RuleCompiler, RuleCounters

EVENT = Event(id="1", source="/s", type="t")


def test_the_last_reason_is_reset_by_a_new_version() -> None:
    body = json.dumps({"rules": [{"name": "r", "on": {"type": "t"}, "run": {"function": "f"}}]})
    compiler = RuleCompiler()

    def counters(version: int) -> RuleCounters:
        return compiler.compile([Deployment(VERSION, "x", version, "me", body, {"f": "0"})]).entries["r"].counters

    counters(1).last_reason = "the event has no data.path"
    counters(1).failed = 3
    assert counters(1).last_reason == "the event has no data.path"
    assert (counters(2).last_reason, counters(2).failed) == ("", 3)


def test_the_newest_version_and_switch_of_each_rule_count() -> None:
    def deployed(label: str, version: int, name: str, removed: bool = False) -> Deployment:
        body = {"rules": [{"name": name, "on": {"type": "t"}, "run": {"function": "f"}}]}
        return Deployment(VERSION, label, version, "me", json.dumps(body), {"f": "0"}, removed=removed)

    def names(active_rules: ActiveRules) -> list[str]:
        return [e.rule.name for e in active_rules.matching(EVENT)]

    compiler = RuleCompiler()
    both = [deployed("a", 2, "new"), deployed("a", 1, "old"), deployed("b", 1, "other")]
    assert names(compiler.compile(both)) == ["new", "other"]
    off = compiler.compile(both, [RuleSwitch(VERSION, "new", False, "ann", "noisy")])
    assert names(off) == ["other"]
    assert off.entries["new"].state == ("disabled", "disabled by ann: noisy")
    assert names(compiler.compile([*both, deployed("b", 2, "other", removed=True)])) == ["new"]
    broken = compiler.compile([*both, Deployment(VERSION, "c", 1, "me", "rules: 5", {}), deployed("d", 1, "other")])
    assert set(broken.broken) == {"c", "d"}
    assert names(broken) == ["new", "other"]


def test_of_many_removed_rules_nothing_is_kept() -> None:
    def deployed(version: int, names: list[str]) -> Deployment:
        rules = [{"name": name, "on": {"type": "t"}, "run": {"function": "f"}} for name in names]
        return Deployment(VERSION, "a", version, "me", json.dumps({"rules": rules}), {"f": "0"})

    compiler = RuleCompiler()
    for version in range(1, 6):
        names = ["kept", *(f"r{version}-{n}" for n in range(500))]
        found = compiler.compile([deployed(version, names)])
        found.entries["kept"].counters.failed += 1
        compiler.pause(found.entries[names[1]], "it is slow")

    found = compiler.compile([deployed(6, ["kept"])])

    assert found.entries["kept"].counters.failed == 5
    assert len(compiler._counters) <= REMOVED_KEPT + 1
    assert len(compiler._paused) <= 2


def test_a_version_that_still_tests_events_has_its_own_cost() -> None:
    def deployed(version: int, when: str) -> Deployment:
        body = {"rules": [{"name": "r", "on": {"type": "t"}, "when": when, "run": {"function": "f"}}]}
        return Deployment(VERSION, "x", version, "me", json.dumps(body), {"f": "0"})

    compiler = RuleCompiler()
    cheap = compiler.compile([deployed(1, "data.n == 1")]).entries["r"]
    dear = compiler.compile([deployed(2, "data.l.all(x, data.l.all(y, data.l == data.l))")]).entries["r"]

    assert cheap.cost().all > 0
    assert dear.cost().all == 0


def test_the_cost_of_a_rule_is_kept_while_its_text_stays() -> None:
    body = json.dumps({"rules": [{"name": "r", "on": {"type": "t"}, "run": {"function": "f"}}]})
    compiler, deployments = RuleCompiler(), [Deployment(VERSION, "x", 1, "me", body, {"f": "0"})]
    cost = compiler.compile(deployments).entries["r"].cost()

    disabled = compiler.compile(deployments, [RuleSwitch(VERSION, "r", False, "ann")]).entries["r"]

    assert disabled.disabled_because
    assert disabled.cost() is cost


def test_a_rule_on_outcomes_sees_those_of_its_owner_since_it_is_in_force() -> None:
    def deployed(owner: str, label: str, on: dict[str, str], since: dict[str, int]) -> Deployment:
        body = {"rules": [{"name": f"{label}-rule", "on": on, "run": {"function": "f"}}]}
        text, functions = json.dumps(body), {"f": "0"}
        return Deployment(VERSION, label, 2, owner, text, functions, at_us=9_000_000_000, since_us=since)

    def outcome(owner: str, rule: str) -> Event:
        data = {"owner": owner, "rule": rule, "state": "failed"}
        return Event(id="0" * 32, source="/oncue/tasks", type="oncue.task.failed", data=data)

    def call(owner: str, rule: str) -> Call:
        return Call(VERSION, "", "", owner, "f", rule)

    active = RuleCompiler().compile(
        [
            deployed("ann", "a", {"done": "first"}, {"a-rule": 5_000_000_000}),
            deployed("bob", "b", {"type": "oncue.task.failed"}, {}),
            deployed("ann", "c", {"type": "*"}, {}),
        ]
    )

    def found(owner: str, rule: str, at_ms: int) -> list[str]:
        return [e.rule.name for e in active.outcome_candidates(outcome(owner, rule), at_ms)]

    assert found("ann", "first", 9_000_000) == ["a-rule"]
    assert found("ann", "first", 5_000_000) == ["a-rule"]  # redeployed since
    assert found("ann", "first", 4_000_000) == []
    assert found("bob", "first", 9_000_000) == ["b-rule"]
    assert found("bob", "first", 8_000_000) == []  # before its only version
    assert found("eve", "first", 9_000_000) == []
    assert [active.follow(call(*who)) for who in (("ann", "first"), ("ann", "other"), ("bob", ""), ("eve", "first"))] == [
        True, False, True, False,
    ]  # fmt: skip
    assert active.follow_any
    assert [e.rule.name for e in active.candidates(outcome("ann", "first"))] == ["c-rule"]
