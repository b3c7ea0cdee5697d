"""Accounts for one event of tasks, replays and retries by hand."""

from __future__ import annotations

from pathlib import Path

import msgspec

from oncue.dispatcher.services.history.event_parts import Circumstances, reasons
from oncue.dispatcher.services.history.rules_then import RulesThen
from oncue.dispatcher.services.many_tasks.versions import VersionsInForce
from oncue.protocol.records import VERSION, Call, Event
from oncue.task_lifecycle import State
from oncue.view import EventRow
from oncue.view.chains.event_accounts import AccountedTask, EventAccount
from tests.unit.dispatcher.services.rule_site import RuleSite, with_rules
from tests.unit.dispatcher.services.service_site import ADA
from tests.unit.dispatcher.services.test_stateful_rules import DEDUPE, deploy

AT = Circumstances(ADA, frozenset(), RulesThen((), ()), lambda _: True, True, "", lambda _: "")


def task(id: bytes, state: State, at_us: int, replay: str = "", retry_of: bytes = b"") -> AccountedTask:
    call = Call(VERSION, "f", "e", "ada", rule="r", replay=replay)
    return AccountedTask(id, call, state, at_us, at_us, at_us, b"", retry_of)


def states(*tasks: AccountedTask) -> list[tuple[str, str]]:
    account = EventAccount(1, EventRow(0, Event(id="1", source="/s", type="t"), 1), list(tasks), [], True)
    return [(reason.state, reason.task) for reason in reasons(account, (), AT, ())]


def test_a_retry_by_hand_counts_in_place_of_a_replays_task() -> None:
    first, again = task(b"1", State.FAILED, 1), task(b"2", State.FAILED, 2, "again")
    retried = task(b"3", State.SUCCEEDED, 3, retry_of=b"2")  # former versions did not note the replay

    assert states(first) == [("failed", b"1".hex())]
    assert states(first, again) == [("failed", b"2".hex())]
    assert states(first, again, retried) == [("done", b"3".hex())]


def test_a_retry_of_a_replays_task_is_one_of_the_replay(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        await deploy(rules, DEDUPE)
        (action,) = rules.deployed.engine.active_rules.entries["once"].actions
        call = msgspec.structs.replace(action.call, replay="again", priority=-1)
        versions = VersionsInForce(rules.context, rules.deployed)

        again = (await versions.of(call, same=False)).call
        first = (await versions.of(msgspec.structs.replace(call, replay=""), same=False)).call

        assert (again.replay, again.priority) == ("again", -1)
        assert (first.replay, first.priority) == ("", 0)

    with_rules(tmp_path, work)
