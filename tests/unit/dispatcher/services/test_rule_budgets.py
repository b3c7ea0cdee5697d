"""RuleBudgets: use within each rule's period, pauses of those over their limit."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from oncue.clocks.process import now_us
from oncue.dispatcher.bridge.paused_rules import NONE_PAUSED
from oncue.dispatcher.services.rule_budgets import STARTING
from oncue.log import Record
from oncue.protocol import api as r
from oncue.protocol.codec import encode
from oncue.protocol.records import OK, VERSION, Call, Ended, ResultFrame
from oncue.protocol.topics import RESULTS
from oncue.view.use_rows import HOUR_US
from tests.unit.dispatcher.services.rule_site import RuleSite, rule_file, rule_text, with_rules
from tests.unit.dispatcher.services.service_site import ADA

_numbers = count(1)
LIMIT = "    limits: {{node_hours: {}}}\n"


def text(**limits: str) -> str:
    """Return a file of rules, with limits of node-hours; "": none."""
    head, _, body = rule_text("NAME").partition("\n")
    rules = [body.replace("NAME", name) + (LIMIT.format(limit) if limit else "") for name, limit in limits.items()]
    return "\n".join([head, *rules])


async def use(rules: RuleSite, rule: str, node_hours: float, owner: str = "ada", hours_ago: int = 0) -> None:
    """Append the end of an attempt that took an hour of that share of a node."""
    ended_us = now_us() - hours_ago * HOUR_US
    ended = Ended(
        next(_numbers).to_bytes(16, "big"),
        1,
        OK,
        ended_us - HOUR_US,
        ended_us,
        b"m\xc0",
        cpu_us=HOUR_US // 2,
        peak_bytes=7,
    )
    call = Call(VERSION, "0" * 64, "ep_ada_local", owner, "f", rule)
    frame = ResultFrame(VERSION, call, "ep_ada_local", 0, [ended], 0, node_hours)
    await rules.context.applied(await rules.site.log.append(RESULTS, [Record(encode(frame))]))


async def looked(rules: RuleSite) -> None:
    """Apply the use as it is now, not as it was remembered."""
    rules.budgets._uses._kept = None
    await rules.budgets.apply()


def test_a_rule_over_its_limit_is_paused_until_older_use_is_out_of_the_period(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        assert rules.site.bridge.paused is STARTING
        channel = rules.site.bridge.open("ep_ada_local")
        await rules.deployments.deploy(
            ADA, r.DeployRequest(files=[rule_file(text(day="2/day", week="2/week", free=""))])
        )
        for rule in ("day", "week", "free"):
            await use(rules, rule, 3.0, hours_ago=30)
        await looked(rules)
        assert [*rules.site.bridge.paused.reasons] == [("week", "ada")]
        assert channel.pending.paused == rules.site.bridge.paused

        await use(rules, "day", 2.0)
        await looked(rules)
        assert [*rules.site.bridge.paused.reasons] == [("day", "ada"), ("week", "ada")]
        shown = {i.name: i for i in await rules.rules.all(ADA)}
        assert {n: (i.attempts, i.node_hours, i.worker_hours, i.cpu_hours, i.peak_bytes) for n, i in shown.items()} == {
            "day": (1, 2.0, 1.0, 0.5, 7),
            "week": (1, 3.0, 1.0, 0.5, 7),
            "free": (1, 3.0, 1.0, 0.5, 7),
        }
        assert "limits.node_hours: 2 of 2 node-hours are used in 1d" in shown["day"].why
        assert shown["free"].why == ""

        await rules.deployments.deploy(ADA, r.DeployRequest(files=[rule_file(text(day="2.5/day", week="", free=""))]))
        await looked(rules)
        assert rules.site.bridge.paused is NONE_PAUSED

    with_rules(tmp_path, work)


def test_use_by_another_owners_rule_of_that_name_does_not_count(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        await rules.deployments.deploy(ADA, r.DeployRequest(files=[rule_file(text(day="2/day"))]))
        await use(rules, "day", 50.0, owner="bob")
        await use(rules, "gone", 50.0)
        await looked(rules)
        assert rules.site.bridge.paused is NONE_PAUSED
        assert (await rules.rules.get(ADA, "day")).node_hours == 0
        assert "gone" not in await rules.budgets.uses()

    with_rules(tmp_path, work)
