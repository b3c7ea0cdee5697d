"""Replays: one rule sees stored events once more.

The client asks page by page. A page is done when its tasks are durable, and their ids follow from
the replay's name: a page that is asked for again, after a kill of server or client, adds nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

from oncue.clocks.process import now_us
from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.context import ServerContext
from oncue.dispatcher.off_loop import off_loop
from oncue.dispatcher.services.deployment.deployed_rules import DeployedRules
from oncue.errors import Conflict, Invalid, NotFound
from oncue.log import Record, RecordBatch
from oncue.protocol import api as r
from oncue.protocol import cloudevents
from oncue.protocol.priority import priority_number
from oncue.protocol.records import VERSION, Deployment
from oncue.protocol.topics import EVENTS, RESULTS
from oncue.rules.active_rules import ActiveRule
from oncue.rules.survey.messages import FAILED, FIRES
from oncue.rules.survey.surveyor import Surveyor
from oncue.task_lifecycle import State
from oncue.view.chains.event_accounts import AccountedTask, EventAccount
from oncue.view.event_lists import cursor_row
from oncue.view.record_rows import unpack_position

WHERE, CONDITION = "where", "--where"  # rule that stands for the condition of a replay, and its file's label


class ReplayService:
    """Replays of rules that the caller may see."""

    def __init__(self, context: ServerContext, deployed: DeployedRules, surveyor: Surveyor) -> None:
        self._context, self._deployed, self._surveyor = context, deployed, surveyor

    async def page(self, caller: Caller, rule: str, request: r.ReplayRequest) -> r.ReplayPage:
        """Test the rule with a page of events.

        Raises Conflict, Invalid, NotFound, SurveyFailed.
        """
        self._context.check_accepting()
        entry = self._entry(caller, rule)
        if not request.cursor:
            await self._context.barrier((EVENTS, RESULTS, *self._context.registry.tasks_topics()))
        accounts, following = await self._context.view.accounts(
            request.since_us, request.until_us or now_us() + 1, cursor_row(request.cursor, 0), request.limit
        )
        chosen = [account for account in accounts if _has_state(account, rule, request)]
        chosen = await self._matching(caller, entry, chosen, request.where)
        tasks = letters = 0
        if chosen and not request.dry_run:
            batches = await off_loop(_batches, chosen)
            priority = priority_number(request.priority) if request.priority else None
            tasks, letters = await self._deployed.engine.replay(entry, request.name, batches, priority)
        return r.ReplayPage(
            events=len(accounts),
            chosen=len(chosen),
            tasks=tasks,
            letters=letters,
            next=None if following is None else str(following),
        )

    def _entry(self, caller: Caller, name: str) -> ActiveRule:
        """Return a rule that can be replayed. Raises NotFound, Conflict."""
        entry = self._deployed.engine.active_rules.entries.get(name)
        if entry is None or not self._deployed.visible(caller, entry.deployment.label):
            raise NotFound(f"there is no rule {name!r}", remedy="`oncue rules` lists those that are deployed")
        state, why = entry.state
        if state != "active":
            by_file = "" if entry.paused else f"deploy it without `mode: {state}`"
            remedy = f"oncue rules enable {name}" if state == "disabled" else by_file
            raise Conflict(f"the rule {name!r} is {state}: {why}", remedy=remedy)
        if entry.rule.operators is not None:
            raise Conflict(
                f"the rule {name!r} has operators or limits, whose states are those of the events that arrive now",
                remedy="replay rules without them; of others, retry tasks: oncue tasks retry --rule NAME",
            )
        if entry.rule.follows is not None:
            raise Conflict(
                f"the rule {name!r} is about outcomes of tasks, which are no stored events",
                remedy=f"replay a rule that it follows: {', '.join(entry.rule.follows) or 'any'}",
            )
        return entry

    async def _matching(
        self, caller: Caller, entry: ActiveRule, accounts: Sequence[EventAccount], where: str
    ) -> list[EventAccount]:
        """Return the events for which the rule and the condition hold.

        An event of which the rule cannot make a task is one: it gets a dead letter. Raises Invalid,
        SurveyFailed.
        """
        if not accounts:
            return []
        name = entry.rule.name
        files = [entry.deployment, *([_condition(where)] if where else [])]
        packed = await off_loop(lambda: [cloudevents.to_record(account.row.event) for account in accounts])
        answer = await self._surveyor.ask(caller.subject, files, [name, WHERE] if where else [name], packed)
        for label, why in answer.broken:
            if label == CONDITION:
                raise Invalid(f"where: {why}", remedy='write CEL over the event: data.sample == "A"')
        found = []
        for account, verdicts in zip(accounts, answer.verdicts, strict=True):
            kinds = {(v.label, v.rule): v.kind for v in verdicts}
            fires = kinds.get((entry.deployment.label, name)) in (FIRES, FAILED)
            if fires and (not where or kinds.get((CONDITION, WHERE)) == FIRES):
                found.append(account)
        return found


def _condition(where: str) -> Deployment:
    """Return a rule file that fires where the condition holds."""
    rule = {
        "name": WHERE,
        "on": {"id": {"exists": True}},
        "when": where,
        "run": {"function": "a.py:a", "endpoint": "a"},
    }
    return Deployment(VERSION, CONDITION, 1, "", json.dumps({"rules": [rule]}), {})


def _has_state(account: EventAccount, rule: str, request: r.ReplayRequest) -> bool:
    """Return True if the tasks of the rule are in the wanted state.

    Those of this replay do not count, so that a page can be asked for again.
    """
    if not request.state:
        return True
    replaced = {task.retry_of for task in account.tasks if task.retry_of}
    mine = [
        task
        for task in account.tasks
        if task.call.rule == rule and task.call.replay != request.name and task.id not in replaced
    ]
    return _state(mine) == request.state


def _state(tasks: Collection[AccountedTask]) -> str:
    if not tasks:
        return "none"
    if any(task.state is State.WAITING for task in tasks):
        return "waiting"
    return "done" if all(task.state is State.SUCCEEDED for task in tasks) else "failed"


def _batches(accounts: Sequence[EventAccount]) -> list[RecordBatch]:
    """Return the events as records of the log, one batch each."""
    found = []
    for account in accounts:
        value, headers = cloudevents.to_record(account.row.event)
        partition, offset = unpack_position(account.row.offset)
        record = Record(value, account.row.event.source.encode(), headers, account.row.at_us // 1000)
        found.append(RecordBatch(EVENTS, partition, (offset,), (record,)))
    return found
