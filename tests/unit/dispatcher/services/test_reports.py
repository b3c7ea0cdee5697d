"""ReportService and ReplayService, with rules, operators and limits of a server."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec
import pytest

from oncue.dispatcher.services.history.replays import ReplayService
from oncue.dispatcher.services.history.reports import ReportFilter, ReportService
from oncue.errors import Conflict
from oncue.protocol.api import ReplayRequest, ReportItem
from oncue.protocol.records import Event
from oncue.rules.survey.surveyor import Surveyor
from tests.unit.dispatcher.services.rule_site import RuleSite, with_rules
from tests.unit.dispatcher.services.service_site import ADA
from tests.unit.dispatcher.services.test_stateful_rules import deploy, until_folded

RULE = "rules:\n  - name: r\n    on: {{type: scan}}\n    {keys}\n    run: {{function: f, endpoint: local{run}}}\n"
NONE_OF_EACH = ', for_each: "${first.data.empty}", args: ["${item}"]'
FOLDING = "the operators of the rule have not come to it yet"
SINGLE = ', for_each: "${data.empty}", args: ["${item}"]'


def scan(number: int) -> Event:
    return Event(id=str(number), source="/s", type="scan", data={"n": number, "empty": []})


async def report(rules: RuleSite) -> list[ReportItem]:
    surveyor = Surveyor()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(surveyor.close)
        service = ReportService(rules.context, rules.deployed, rules.stateful, surveyor)
        return list((await service.page(ADA, ReportFilter())).items)


@pytest.mark.parametrize(
    ("keys", "run", "why"),
    [
        ("mode: shadow", "", "runs nothing"),
        ("mode: shadow\n    batch: {count: 1}", "", "runs nothing"),
        ("", SINGLE, "the list of `for_each` is empty"),
        ("batch: {count: 1}", NONE_OF_EACH, "left it out"),
    ],
)
def test_an_event_of_which_a_rule_makes_no_task_is_passed_over(tmp_path: Path, keys: str, run: str, why: str) -> None:
    async def work(rules: RuleSite) -> None:
        await deploy(rules, RULE.format(keys=keys, run=run))
        await rules.emit(scan(1))

        (item,) = await report(rules)
        while item.reasons[0].why == FOLDING:
            (item,) = await report(rules)

        assert (item.state, len(item.reasons)) == ("passed over", 1)
        assert why in item.reasons[0].why

    with_rules(tmp_path, work)


def test_the_events_of_a_batch_that_waits_for_a_limit_are_waiting(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        await deploy(rules, RULE.format(keys="batch: {count: 2}\n    limit: {running: 1}", run=""))
        await rules.emit(*(scan(n) for n in range(5)))
        await until_folded(rules, "r", 3)

        items = await report(rules)

        assert [item.state for item in items] == ["waiting"] * 5
        assert [item.tasks for item in items] == [1, 1, 0, 0, 0]

    with_rules(tmp_path, work)


def test_a_page_has_few_large_events(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        events = [msgspec.structs.replace(scan(n), data="x" * 900_000) for n in range(7)]
        await rules.emit(*events)

        found, cursor = await rules.context.view.accounts(0, 0, 0, 1_000)
        rest, last = await rules.context.view.accounts(0, 0, cursor or 0, 1_000)

        assert [account.row.event.id for account in (*found, *rest)][:6] == ["0", "1", "2", "3", "4", "5"]
        assert (len(found), len(rest)) == (3, 3)
        assert last is not None

    with_rules(tmp_path, work)


def test_a_rule_may_have_the_name_of_a_replays_condition(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        text = RULE.format(keys="match: {data.n: {gt: 5}}", run="").replace("name: r", "name: where")
        await deploy(rules, text)
        await rules.emit(scan(1), scan(7), scan(9))
        surveyor = Surveyor()
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(surveyor.close)
            replays = ReplayService(rules.context, rules.deployed, surveyor)

            page = await replays.page(ADA, "where", ReplayRequest(name="a", where="data.n < 8", dry_run=True))

        assert (page.events, page.chosen) == (3, 1)

    with_rules(tmp_path, work)


@pytest.mark.parametrize(("keys", "remedy"), [("mode: shadow", "mode: shadow"), ("enabled: false", "rules enable r")])
def test_a_replay_says_what_lets_the_rule_run(tmp_path: Path, keys: str, remedy: str) -> None:
    async def work(rules: RuleSite) -> None:
        await deploy(rules, RULE.format(keys=keys, run=""))
        replays = ReplayService(rules.context, rules.deployed, Surveyor())

        with pytest.raises(Conflict) as e:
            await replays.page(ADA, "r", ReplayRequest(name="a", dry_run=True))

        assert remedy in e.value.remedy

    with_rules(tmp_path, work)
