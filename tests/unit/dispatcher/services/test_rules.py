"""RuleService: rules with their triggers' states, switches, and explanations with the tasks that were made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from oncue.dispatcher.services.rules import triggers_of
from oncue.errors import NotFound
from oncue.protocol import api as r
from oncue.protocol.records import Event
from oncue.protocol.topics import EVENTS, RESULTS
from tests.unit.dispatcher.services.rule_site import RuleSite, rule_file, rule_text, with_rules
from tests.unit.dispatcher.services.service_site import ADA, ADMIN, BOB

PEER = "http://peer:1"
SCAN = Event(id="1", source="/s", type="scan", data={"n": 1})


@pytest.mark.parametrize(
    ("on", "names"),
    [
        ("scans", ["scans"]),
        (["scans", "darks"], ["scans", "darks"]),
        ({"type": "scans"}, []),
        ({"join": "scans"}, []),  # an attribute
        ({"join": {"a": "scans", "b": ["darks"], "c": {"type": "x"}, "d": None}}, ["scans", "darks"]),
    ],
)
def test_the_triggers_of_a_rule_are_those_of_its_patterns_too(on: Any, names: list[str]) -> None:
    info = r.RuleInfo(name="r", label="l", version=1, enabled=True, on=on, runs=[], endpoint="e", state="active")
    assert list(triggers_of(info)) == names


async def deploy(rules: RuleSite, text: str = "") -> None:
    await rules.deployments.deploy(ADA, r.DeployRequest(files=[rule_file(text)]))


async def until_tasks_are_viewed(rules: RuleSite) -> None:
    await rules.context.barrier([*rules.context.registry.tasks_topics(), RESULTS])


def test_a_rule_is_seen_by_its_owner_and_admins(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        await deploy(rules)
        assert [i.name for i in await rules.rules.all(ADA)] == [i.name for i in await rules.rules.all(ADMIN)]
        assert (await rules.rules.get(ADA, "reconstruct")).label == "tomo"
        assert await rules.rules.all(BOB) == []
        for refused in (rules.rules.get(BOB, "reconstruct"), rules.rules.switch(BOB, "reconstruct", False, "")):
            with pytest.raises(NotFound, match="no rule 'reconstruct'"):
                await refused
        with pytest.raises(NotFound, match="there are: reconstruct"):
            await rules.rules.get(ADA, "other")

    with_rules(tmp_path, work)


def test_a_switched_off_rule_makes_no_tasks_until_it_is_switched_on(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        await deploy(rules)
        off = await rules.rules.switch(ADA, "reconstruct", False, "beam is down")
        await rules.emit(SCAN)
        assert off.state == "disabled"
        assert "beam is down" in off.why
        assert (await rules.rules.get(ADA, "reconstruct")).fired == 0
        on = await rules.rules.switch(ADA, "reconstruct", True, "")
        await rules.emit(Event(id="2", source="/s", type="scan", data={}))
        assert (on.state, (await rules.rules.get(ADA, "reconstruct")).fired) == ("active", 1)

    with_rules(tmp_path, work)


def test_an_explanation_of_a_stored_event_has_its_tasks(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        await deploy(rules)
        await rules.emit(SCAN)
        await until_tasks_are_viewed(rules)
        stored = await rules.rules.explain(ADA, "reconstruct", None, 0)
        assert stored.fires
        (fired,) = stored.fired
        assert fired.version == 1
        assert fired.at_us > 0
        assert [f.task for f in (await rules.rules.explain(ADA, "reconstruct", SCAN, None)).fired] == [fired.task]
        with pytest.raises(NotFound, match="offset 7"):
            await rules.rules.explain(ADA, "reconstruct", None, 7)
        with pytest.raises(NotFound):
            await rules.rules.explain(BOB, "reconstruct", SCAN, None)

    with_rules(tmp_path, work)


def test_an_explanation_of_a_given_event_makes_no_task(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        await deploy(rules)
        other = await rules.rules.explain(ADA, "reconstruct", Event(id="9", source="/s", type="other"), None)
        same = await rules.rules.explain(ADA, "reconstruct", Event(id="9", source="/s", type="scan"), None)
        assert (other.fires, same.fires, same.fired) == (False, True, [])
        assert (await rules.rules.get(ADA, "reconstruct")).fired == 0

    with_rules(tmp_path, work)


def test_a_rule_says_that_its_trigger_does_not_run(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        missing = tmp_path / "not there"
        await deploy(
            rules,
            f"triggers:\n  - {{name: detector, kind: file, path: '{missing}'}}\n"
            "rules:\n  - {name: r, on: detector, run: {function: f, endpoint: local}}\n",
        )
        why = (await rules.rules.get(ADA, "r")).why
        assert why.startswith("its trigger detector is ")
        assert "not there" in why

    with_rules(tmp_path, work)


def test_counts_of_other_servers_are_added_for_callers_only(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        await deploy(rules)
        await rules.emit(SCAN)
        while not (own := await rules.rules.get(ADA, "reconstruct")).fired:  # counted after the commit
            await rules.context.barrier((EVENTS,))
        rules.site.ownership.elsewhere["other"] = PEER
        peer = r.RuleInfo(**{f: getattr(own, f) for f in own.__struct_fields__} | {"fired": 4, "suppressed": 2})
        rules.site.peers.answers["rules", PEER] = [peer]
        assert (await rules.rules.get(ADA, "reconstruct")).fired == 1
        total = await rules.rules.get(ADA, "reconstruct", "Bearer t")
        assert (total.fired, total.suppressed) == (5, 2)

    with_rules(tmp_path, work)


def test_rules_are_compiled_anew_only_if_a_file_or_a_switch_has_changed(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        await deploy(rules)
        engine, triggers = rules.deployed.engine, []
        rules.deployed.on_reload(lambda: triggers.append(1))
        before, found = engine.active_rules, rules.deployed.deployments["tomo"]
        rules.site.bridge.open("ep_ada_local")
        endpoint = rules.context.registry.endpoints()[0]
        await rules.context.record([(f"endpoint:{endpoint.id}", msgspec.structs.replace(endpoint, labels={"a": "b"}))])
        await rules.deployed.sync()
        assert (engine.active_rules, triggers) == (before, [])

        await rules.rules.switch(ADA, "reconstruct", False, "")
        assert engine.active_rules is not before
        assert len(triggers) == 1
        assert rules.deployed.deployments["tomo"] is found

    with_rules(tmp_path, work)


def test_two_rules_are_listed_by_their_owners(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        await deploy(rules, rule_text("one") + rule_text("two").removeprefix("rules:\n"))
        assert [i.name for i in await rules.rules.all(ADA)] == ["one", "two"]

    with_rules(tmp_path, work)
