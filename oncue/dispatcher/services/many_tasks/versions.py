"""Finds the function's version and the policies that a retry runs with.

A task of a rule runs what the rule runs now: function, endpoint, time limits and retries of the
deployment in force. Another task, or one whose rule is gone, runs the newest version of its
function that its owner has registered from the same file.
"""

from __future__ import annotations

import os

import msgspec

from oncue.dispatcher.context import ServerContext
from oncue.dispatcher.services.deployment.deployed_rules import DeployedRules
from oncue.protocol.records import Call, FunctionRecord


class Version(msgspec.Struct, frozen=True):
    """A call to run again, and the versions of its function; 0: not known."""

    call: Call
    new: int
    old: int


class VersionsInForce:
    """Versions of the calls of one request; each call is looked up once."""

    def __init__(self, context: ServerContext, deployed: DeployedRules) -> None:
        self._context, self._deployed = context, deployed
        self._found: dict[tuple[Call, bool], Version] = {}

    async def of(self, call: Call, *, same: bool) -> Version:
        """Return the call to run; `same`: with the function and policies that it had."""
        key = (call, same)
        if key not in self._found:
            self._found[key] = await self._look_up(msgspec.structs.replace(call, expires_us=0, stream=""), same)
        return self._found[key]

    async def _look_up(self, call: Call, same: bool) -> Version:
        versions = await self._context.view.function_versions(call.name, call.owner)
        numbers = {f.id: f.version for f in reversed(versions)}
        new = call if same else self._of_rule(call) or _newest(call, versions)
        return Version(new, numbers.get(new.function, 0), numbers.get(call.function, 0))

    def _of_rule(self, call: Call) -> Call | None:
        entry = self._deployed.engine.active_rules.entries.get(call.rule) if call.rule else None
        if entry is None or entry.deployment.owner != call.owner:
            return None
        for action in entry.actions:
            if action.call.name == call.name and action.call.function:
                endpoint = self._context.registry.endpoint_id(action.endpoint, action.owner)
                priority = call.priority if call.replay else action.call.priority
                return msgspec.structs.replace(
                    action.call, endpoint=endpoint or call.endpoint, replay=call.replay, priority=priority
                )
        return None


def _newest(call: Call, versions: list[FunctionRecord]) -> Call:
    """Return the call with the newest version of its function of the same file.

    Two files may have functions of one name, and all lambdas have one.
    """
    old = next((f for f in versions if f.id == call.function), None)
    if old is None or not call.name.isidentifier():
        return call
    newest = next(f for f in versions if _origin(f) == _origin(old))
    return msgspec.structs.replace(call, function=newest.id)


def _origin(f: FunctionRecord) -> str:
    return "<" if f.file.startswith("<") else os.path.basename(f.file)  # all cells of notebooks are one
