"""What the functions of a rule file are bound to: contents, which change without a change of the file."""

from __future__ import annotations

from collections.abc import Mapping

from oncue.protocol import api as r
from oncue.protocol.records import Deployment
from oncue.rules.parsing.rule_file import RuleSet
from oncue.view import View


async def function_changes(
    view: View, old: Deployment | None, functions: Mapping[str, str], owner: str
) -> list[r.FunctionChange]:
    """`functions`: as written -> content, as `owner` would put it in force in the place of `old`."""
    before = old.functions if old and not old.removed else {}
    return [
        r.FunctionChange(
            function=name,
            old=before.get(name, ""),
            new=functions.get(name, ""),
            old_version=await _version(view, before.get(name, ""), old.owner if old else owner),
            new_version=await _version(view, functions.get(name, ""), owner),
        )
        for name in dict.fromkeys([*functions, *before])
        if before.get(name) != functions.get(name)
    ]


async def _version(view: View, content: str, owner: str) -> int:
    found = await view.function(content, owner=owner) if content else None
    return found.version if found else 0


def users(ruleset: RuleSet, changes: list[r.FunctionChange]) -> set[str]:
    """The rules that were there, and whose functions have other contents now."""
    fresh = {c.function for c in changes if c.old and c.new}
    return {rule.name for rule in ruleset.rules if any(run.function in fresh for run in rule.runs)}
