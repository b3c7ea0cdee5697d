"""TriggerService: triggers here and on other servers, as callers see them, and webhooks."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from oncue.clocks.process import now_us
from oncue.dispatcher.file_chains import FileChains
from oncue.dispatcher.services import triggers as module
from oncue.errors import NotFound, NotReady, TriggerFailed
from oncue.protocol import api as r
from oncue.protocol.records import Event
from oncue.protocol.topics import EVENTS
from oncue.view import TaskRun
from tests.unit.dispatcher.services.rule_site import RuleSite, rule_file, with_rules
from tests.unit.dispatcher.services.service_site import ADA, ADMIN, BOB

PEER = "http://peer:1"
HOOK = "triggers:\n  - {name: hook, kind: webhook, verify: none}\n"
FILES = "triggers:\n  - {name: detector, kind: file, path: data}\n"
THERE = r.TriggerInfo(name="detector", kind="file", label="tomo", state="running", emitted=3)


async def deploy(rules: RuleSite, text: str, bearer: str = "") -> r.Deployed:
    file = rule_file(text, path=str(rules.site.folder / "rules.yaml"))
    (answer,) = await rules.deployments.deploy(ADA, r.DeployRequest(files=[file]), bearer)
    return answer


def test_a_deploy_is_answered_after_the_initial_scan(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "old.h5").write_bytes(b"1")
        (info,) = (await deploy(rules, FILES)).triggers
        assert (info.name, info.state, info.looked, info.existing) == ("detector", "running", True, 1)
        assert not any((await rules.site.log.end_offsets([EVENTS])).values())

    with_rules(tmp_path, work)


def test_a_trigger_is_seen_by_the_owner_of_its_file_and_admins(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        await deploy(rules, HOOK)
        for caller in (ADA, ADMIN):
            assert [t.name for t in await rules.triggers.all(caller)] == ["hook"]
            assert (await rules.triggers.get(caller, "hook")).kind == "webhook"
        assert await rules.triggers.all(BOB) == []
        with pytest.raises(NotFound, match="no trigger 'hook'"):
            await rules.triggers.get(BOB, "hook")
        with pytest.raises(NotFound):
            await rules.triggers.explain(BOB, "hook", "x")

    with_rules(tmp_path, work)


def test_a_removed_trigger_is_gone(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        await deploy(rules, HOOK)
        await rules.deployments.remove(ADA, "tomo")
        assert await rules.triggers.infos() == []
        with pytest.raises(NotFound, match="no webhook 'hook'"):
            await rules.triggers.receive("hook", {}, b"{}")

    with_rules(tmp_path, work)


def test_a_trigger_of_another_server_is_shown_as_that_one_knows_it(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        rules.site.ownership.elsewhere["detector"] = PEER
        rules.site.peers.answers["triggers", PEER] = [THERE]
        (deployed,) = (await deploy(rules, FILES, "Bearer t")).triggers
        (alone,) = await rules.triggers.all(ADA)
        (asked,) = await rules.triggers.all(ADA, "Bearer t")
        assert (alone.state, alone.server) == ("elsewhere", "")
        assert deployed == asked
        assert (asked.state, asked.emitted, asked.server) == ("running", 3, PEER)

    with_rules(tmp_path, work)


def test_details_of_a_trigger_are_requested_from_its_server(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        rules.site.ownership.elsewhere["detector"] = PEER
        answers, bearer = rules.site.peers.answers, "Bearer t"
        answers["triggers", PEER] = [THERE]
        await deploy(rules, FILES, bearer)
        answers["trigger", PEER] = r.TriggerShown(name="detector", kind="file", label="tomo", state="running")
        answers["trigger_file", PEER] = r.TriggerFile(path="a.h5", state="fired", why="it is complete", at_us=5)
        assert (await rules.triggers.get(ADA, "detector", bearer)).server == PEER
        assert (await rules.triggers.explain(ADA, "detector", "a.h5", bearer)).state == "fired"
        with pytest.raises(TriggerFailed, match="runs on the server"):
            await rules.triggers.explain(ADA, "detector", "a.h5")

    with_rules(tmp_path, work)


def test_a_deploy_does_not_wait_for_ever_for_a_server_without_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(rules: RuleSite) -> None:
        rules.site.ownership.elsewhere["detector"] = PEER
        (info,) = (await deploy(rules, FILES, "Bearer t")).triggers
        assert (info.state, info.looked) == ("elsewhere", False)
        assert {method for method, *_ in rules.site.peers.requests} == {"triggers"}

    monkeypatch.setattr(module, "LOOK_S", 0.3)
    with_rules(tmp_path, work)


def test_a_trigger_that_this_server_owns_now_starts_here(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        (tmp_path / "data").mkdir()
        rules.site.ownership.elsewhere["detector"] = PEER
        rules.site.peers.answers["triggers", PEER] = [THERE]
        await deploy(rules, FILES, "Bearer t")
        rules.site.ownership.elsewhere.clear()
        rules.triggers.update()
        (info,) = await rules.triggers.initial_scans(["detector"], "")
        assert (info.state, info.server) == ("running", "")

    with_rules(tmp_path, work)


def test_a_webhook_stores_the_event_before_it_answers(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        await deploy(rules, HOOK)
        headers = {"content-type": "application/json"}
        status, _, _ = await rules.triggers.receive("hook", headers, b'{"n": 1}')
        assert status in (200, 202)
        event = await rules.events.get(ADA, 0)
        assert event.event["data"] == {"n": 1}
        rules.context.ready = False
        with pytest.raises(NotReady):
            await rules.triggers.receive("hook", headers, b"{}")

    with_rules(tmp_path, work)


def test_a_webhook_that_another_server_deployed_just_now_is_found(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        deploying: Any = rules.deployments.deploy(ADA, r.DeployRequest(files=[rule_file(HOOK)]))
        sync = rules._sync

        async def deployed_meanwhile() -> bool:
            await deploying
            return await sync()

        rules.triggers._sync_registry = deployed_meanwhile
        status, _, _ = await rules.triggers.receive("hook", {"content-type": "application/json"}, b"{}")
        assert status in (200, 202)
        assert rules.synced == 1
        await asyncio.sleep(0)

    with_rules(tmp_path, work)


@pytest.mark.parametrize("data", [{"n": 1}, {"trigger": "detector", "path": [1], "stem": 2}, None])
def test_a_webhook_takes_events_that_name_themselves_files(tmp_path: Path, data: Any) -> None:
    async def work(rules: RuleSite) -> None:
        await deploy(rules, HOOK)
        event = {"specversion": "1.0", "id": "1", "source": "s", "type": "oncue.file.ready", "data": data}
        event["oncuetimems"] = "5"
        headers = {"content-type": "application/cloudevents+json"}
        status, _, _ = await rules.triggers.receive("hook", headers, json.dumps(event).encode())
        assert status == 202
        assert "oncuedepth" not in (await rules.events.get(ADA, 0)).event

    with_rules(tmp_path, work)


def test_files_of_one_owner_are_in_no_chain_of_anothers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ready(trigger: str, name: str) -> Event:
        data = {"trigger": trigger, "path": f"/{trigger}/{name}", "stem": name}
        marks: dict[str, str | int | bool] = {"oncuetrigger": trigger, "oncuetimems": str(now_us() // 1_000 + 1)}
        return Event(id=name, source=trigger, type="oncue.file.ready", data=data, extensions=marks)

    async def work(rules: RuleSite) -> None:
        async def all_run(events: Any) -> dict[Any, list[TaskRun]]:
            return {event: [TaskRun(1, 0)] for event in events}

        monkeypatch.setattr(rules.context.view, "runs", all_run)
        await deploy(rules, FILES)
        others = rule_file(FILES.replace("detector", "camera"), "other", path=str(rules.site.folder / "rules.yaml"))
        await rules.deployments.deploy(BOB, r.DeployRequest(files=[others]))
        for n in range(4):  # each file's task seems to write the next one
            await rules.triggers._emit([ready("detector", "a" + n * "_b")])
        await rules.triggers._emit([ready("camera", "a_b_b_b_c")])
        depths = [(await rules.events.get(ADMIN, n)).event.get("oncuedepth") for n in range(5)]
        assert depths == [None, "1", "2", "3", None]

    with_rules(tmp_path, work)


def test_a_large_batch_of_files_lets_others_have_their_turn() -> None:
    async def work() -> None:
        async def none(events: Any) -> dict[Any, list[TaskRun]]:
            return {}

        data = {"trigger": "detector", "path": "/a", "stem": "a" * 250}
        event = Event(id="1", source="s", type="oncue.file.ready", data=data, extensions={"oncuetimems": "1"})
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        beside = asyncio.create_task(other())
        await FileChains(none).trace([event] * 1_000)
        beside.cancel()
        assert turns > 10

    asyncio.run(work())
