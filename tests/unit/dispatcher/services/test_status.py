"""StatusService: /health says which part is not well; /metrics has the gauges of bridge, view and rules."""

from __future__ import annotations

from pathlib import Path

from oncue.dispatcher.services.status import StatusService
from oncue.log import Record
from oncue.protocol import api as r
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION, DeadLetter, Deployment
from oncue.protocol.topics import DEAD
from oncue.rules.evaluation.judge import pause_of
from tests.unit.dispatcher.services.rule_site import RuleSite, rule_file, with_rules
from tests.unit.dispatcher.services.service_site import ADA, BOB


def service(rules: RuleSite) -> StatusService:
    site = rules.site
    return StatusService(
        site.context, site.bridge, site.ownership, rules.deployed, rules.triggers, rules.stateful, {}, rules.budgets
    )


def test_a_server_is_starting_ok_or_degraded(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        status, context = service(rules), rules.context
        well = await status.health()
        context.disk_full = "the disk is full"
        full = await status.health()
        context.ready = False
        stopping = await status.health()
        assert (well.status, set(well.checks.values())) == ("ok", {"ok"})
        assert (full.status, full.checks["log"]) == ("degraded", "the disk is full")
        assert stopping.status == "starting"

    with_rules(tmp_path, work)


def test_triggers_and_blob_stores_that_are_not_well_are_named(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        text = f"triggers:\n  - {{name: detector, kind: file, path: '{tmp_path / 'none'}'}}\n"
        await rules.deployments.deploy(ADA, r.DeployRequest(files=[rule_file(text)]))
        rules.site.ownership.blob_stores = ["http://peer:1"]
        health = await service(rules).health()
        assert health.status == "ok"
        assert health.checks["triggers"] == "not ok: 1 of 1 do not run"
        assert [*health.triggers] == ["detector"]
        assert health.checks["blobs"].startswith("not the folder of http://peer:1")

    with_rules(tmp_path, work)


def test_rule_files_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        await rules.deployments.deploy(ADA, r.DeployRequest(files=[rule_file()]))
        newer = Deployment(VERSION, "newer", 1, "ada", "rules: [{name: r, from: 2030}]", {})
        await rules.context.record([("deployment:newer@1", newer)])
        await rules.deployed.reload()

        health = await service(rules).health()
        rows = {info.label: info for info in await rules.rules.all(ADA)}

        assert health.status == "ok"
        assert health.checks["rules"] == "not ok: 1 of 2 rule files cannot be read"
        assert (rows["tomo"].state, rows["newer"].state) == ("active", "unreadable")
        assert "none of its rules fires" in rows["newer"].why
        assert "a rule has no key 'from'" in rows["newer"].why
        assert [i.label for i in await rules.rules.all(BOB)] == []

    with_rules(tmp_path, work)


def test_rules_that_the_server_has_paused_are_counted_and_go_on_when_they_are_enabled(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        await rules.deployments.deploy(ADA, r.DeployRequest(files=[rule_file()]))
        (entry,) = rules.deployed.engine.active_rules.entries.values()
        name = entry.rule.name
        await rules.context.record([(f"switch:{name}", pause_of(entry, "it took too long"))])
        await rules.deployed.reload()

        health = await service(rules).health()
        shown = await rules.rules.get(ADA, name)
        assert (health.status, health.checks["rules"]) == ("ok", "not ok: 1 of 1 rules are paused")
        assert (shown.state, shown.why.partition(";")[0]) == ("paused", "it took too long")
        assert "oncue rules resume" in shown.why

        assert (await rules.rules.switch(ADA, name, True, "")).state == "active"
        assert (await service(rules).health()).checks["rules"] == "ok"

    with_rules(tmp_path, work)


def test_gauges_are_brought_up_to_date(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        site = rules.site
        site.bridge.open("ep_ada_local")
        letter = DeadLetter(VERSION, "match", "it does not fit", 5, owner="ada")
        await site.context.applied(await site.log.append(DEAD, [Record(encode(letter))]))
        await service(rules).collect()
        lines = site.context.metrics.text().decode().splitlines()
        assert 'oncue_queue_depth{endpoint="local",owner="ada"} 0.0' in lines
        assert "oncue_endpoints_connected 0.0" in lines
        assert "oncue_dead_letters_open 1.0" in lines
        assert "oncue_view_lag_records 0.0" in lines

    with_rules(tmp_path, work)
