"""StatefulRuleService: windows in the answers, the preview of an event, and counters of /metrics."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from oncue.dispatcher.services.stateful_rules import ACTING
from oncue.errors import Invalid
from oncue.protocol import api as r
from oncue.protocol.records import Event
from oncue.protocol.topics import RESULTS
from tests.unit.dispatcher.services.rule_site import RuleSite, rule_file, with_rules
from tests.unit.dispatcher.services.service_site import ADA, Site, with_site

PEER = "http://peer:1"
BATCH = (
    'rules:\n  - name: stack\n    on: {type: scan}\n    batch: {count: 3, key: "${data.run}"}\n'
    "    run: {function: f, endpoint: local}\n"
)
DEDUPE = (
    'rules:\n  - name: once\n    on: {type: scan}\n    dedupe: {key: "${data.run}", ttl: 1h}\n'
    "    run: {function: f, endpoint: local}\n"
)


def scan(number: int, run: str = "a") -> Event:
    return Event(id=str(number), source="/s", type="scan", data={"run": run})


async def deploy(rules: RuleSite, text: str) -> r.Deployed:
    (answer,) = await rules.deployments.deploy(ADA, r.DeployRequest(files=[rule_file(text)]))
    return answer


async def until_folded(rules: RuleSite, name: str, passed: int) -> None:
    """Wait until the rule's operators have folded so many events (or made so many tasks)."""
    endpoint = rules.context.registry.tasks_topics()
    while True:
        await rules.context.barrier([*endpoint, RESULTS])
        info = await rules.rules.get(ADA, name)
        if info.waiting + info.fired + info.suppressed >= passed:
            return


def metric(rules: RuleSite, name: str) -> dict[str, float]:
    text = rules.context.metrics.text().decode()
    return {
        s.labels["rule"]: s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
        if s.name == name
    }


def test_a_rule_shows_its_open_windows(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        await deploy(rules, BATCH)
        await rules.emit(scan(1), scan(2), scan(3, "b"))
        await until_folded(rules, "stack", 3)
        info = await rules.rules.get(ADA, "stack")
        assert (info.windows, info.waiting) == (2, 3)

    with_rules(tmp_path, work)


def test_an_explanation_previews_the_operators_and_changes_nothing(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        await deploy(rules, DEDUPE)
        before = await rules.rules.explain(ADA, "once", scan(1), None)
        await rules.emit(scan(1))
        await until_folded(rules, "once", 1)
        same = await rules.rules.explain(ADA, "once", scan(2), None)
        other = await rules.rules.explain(ADA, "once", scan(2, "b"), None)
        assert (before.fires, same.fires, other.fires) == (True, False, True)

    with_rules(tmp_path, work)


def test_counters_of_metrics_never_count_an_event_twice(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        await deploy(rules, DEDUPE)
        await rules.emit(scan(1), scan(2))
        await until_folded(rules, "once", 2)
        for _ in range(2):
            await rules.stateful.update_metrics()
        assert metric(rules, "oncue_rule_fired_total") == {"once": 1}
        assert metric(rules, "oncue_rule_suppressed_total") == {"once": 1}

    with_rules(tmp_path, work)


def test_windows_of_another_server_are_shown_by_that_server(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        await deploy(rules, BATCH)
        await rules.emit(scan(1))
        await until_folded(rules, "stack", 1)
        own = await rules.rules.get(ADA, "stack")
        rules.site.ownership.elsewhere[ACTING] = PEER
        there = r.RuleInfo(**{f: getattr(own, f) for f in own.__struct_fields__} | {"windows": 7, "waiting": 9})
        rules.site.peers.answers["rules", PEER] = [there]
        alone, asked = await rules.rules.get(ADA, "stack"), await rules.rules.get(ADA, "stack", "Bearer t")
        assert (own.windows, alone.windows) == (1, 0)
        assert (asked.windows, asked.waiting) == (7, 9)

    with_rules(tmp_path, work)


def test_all_is_well_on_an_embedded_log(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        assert (await deploy(rules, BATCH)).waits == ""
        assert rules.stateful.trouble() == ""

    with_rules(tmp_path, work)


def test_stream_workers_need_kafka(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        rules = RuleSite(site)
        with pytest.raises(Invalid, match="the log is not on Kafka"):
            await rules.stateful.start(tmp_path / "windows.db")
        await rules.stateful.close()

    with_site(tmp_path, work, rules_memory="stream")
