"""Simulations: effects that another version of a rule file would have had."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from oncue.clocks.process import now_us
from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.context import ServerContext
from oncue.dispatcher.off_loop import off_loop
from oncue.dispatcher.services.deployment.deployed_rules import DeployedRules
from oncue.errors import Invalid
from oncue.protocol import api as r
from oncue.protocol import cloudevents
from oncue.protocol.records import VERSION, Deployment
from oncue.protocol.topics import EVENTS
from oncue.rules.survey.messages import FIRES, MATCHED, NO, SurveyAnswer, Verdict
from oncue.rules.survey.surveyor import Surveyor
from oncue.view.chains.event_accounts import EventAccount
from oncue.view.event_lists import cursor_row

LISTED = 500  # differences of a page
NOTHING = Verdict("", "-", why="its `on` is about other events")
NEW = Verdict("", "-", why="the rule is new")
REMOVED = Verdict("", "-", why="the file has no such rule any more")


class SimulationService:
    """Compares rules in force with others. Nothing is run."""

    def __init__(self, context: ServerContext, deployed: DeployedRules, surveyor: Surveyor) -> None:
        self._context, self._deployed, self._surveyor = context, deployed, surveyor

    async def page(self, caller: Caller, label: str, request: r.SimulateRequest) -> r.SimulationPage:
        """Compare for a page of events. Raises Invalid, SurveyFailed."""
        if not request.cursor:
            await self._context.barrier((EVENTS,))
        accounts, following = await self._context.view.accounts(
            request.since_us, request.until_us or now_us() + 1, cursor_row(request.cursor, 0), request.limit
        )
        visible = self._deployed.visible(caller, label)
        old = [self._deployed.deployments[label]] if visible else []
        new = [Deployment(VERSION, label, 0, caller.subject, request.text, {})]
        packed = await off_loop(lambda: [cloudevents.to_record(account.row.event) for account in accounts])
        after = await self._surveyor.ask(caller.subject, new, (), packed, with_args=True)
        if after.broken:
            raise Invalid(f"the rule file cannot be read: {after.broken[0][1]}", remedy="oncue rules test FILE")
        before = await self._surveyor.ask(caller.subject, old, (), packed, with_args=True) if old else SurveyAnswer()
        page = await off_loop(_compared, accounts, before, after)
        return r.SimulationPage(
            events=len(accounts),
            rules=page.rules,
            differences=page.differences,
            left_out=sorted({*before.left_out, *after.left_out}),
            next=None if following is None else str(following),
        )


def _compared(accounts: Sequence[EventAccount], before: SurveyAnswer, after: SurveyAnswer) -> r.SimulationPage:
    fired: dict[str, Counter[str]] = {name: Counter() for name in sorted({*before.rules, *after.rules})}
    differences: list[r.SimulatedDifference] = []
    olds = before.verdicts or ((),) * len(accounts)
    no_old = dict.fromkeys({*after.rules} - {*before.rules}, NEW)
    no_new = dict.fromkeys({*before.rules} - {*after.rules}, REMOVED)
    for account, old, new in zip(accounts, olds, after.verdicts, strict=True):
        was, would = {v.rule: v for v in old}, {v.rule: v for v in new}
        for rule in was.keys() | would.keys():
            a, b = was.get(rule, no_old.get(rule, NOTHING)), would.get(rule, no_new.get(rule, NOTHING))
            fired[rule]["before"] += a.kind in (FIRES, MATCHED)
            fired[rule]["after"] += b.kind in (FIRES, MATCHED)
            if _effect(a) == _effect(b) and a.args_hash == b.args_hash:
                continue
            fired[rule]["differing"] += 1
            if len(differences) < LISTED:
                differences.append(_difference(account, rule, a, b))
    return r.SimulationPage(rules=[_rule(name, c) for name, c in fired.items()], differences=differences)


def _effect(verdict: Verdict) -> str:
    """Return the effect of a verdict; of those without one, the reasons do not matter."""
    return NOTHING.kind if verdict.kind == NO else verdict.kind


def _rule(name: str, counts: Mapping[str, int]) -> r.SimulatedRule:
    return r.SimulatedRule(rule=name, before=counts["before"], after=counts["after"], differing=counts["differing"])


def _difference(account: EventAccount, rule: str, a: Verdict, b: Verdict) -> r.SimulatedDifference:
    event = account.row.event
    return r.SimulatedDifference(
        offset=account.row.offset,
        id=event.id,
        rule=rule,
        before=a.kind,
        after=b.kind,
        why=b.why if b.kind not in (FIRES, MATCHED) else a.why if a.kind not in (FIRES, MATCHED) else "",
        args_before=a.args,
        args_after=b.args,
    )
