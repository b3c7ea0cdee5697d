"""RuleFileParser: parses rule files beside the event loop, each text once.

A deploy is usually a dry run, the deploy itself, and the reload that puts it in force: three uses
of the same texts. 10,000 rules take a second to parse.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence

import msgspec

from oncue.errors import OncueError
from oncue.protocol import api as r
from oncue.protocol.records import Deployment
from oncue.rules.parsing.circles import check_circles
from oncue.rules.parsing.names import OnNames
from oncue.rules.parsing.rule_file import RuleSet, check_unique, parse, parse_together
from oncue.strict_yaml.disposal import dispose
from oncue.triggers.catalog import OptionStructs

log = logging.getLogger("oncue.rules")


class ParsedDeployment(msgspec.Struct, frozen=True):
    """A deployed text as parsed by this version of oncue.

    `rules` is empty if it cannot be read; `why` is the reason.
    """

    rules: RuleSet
    why: str = ""


class RuleFileParser:
    """Parses files to deploy, and deployed texts."""

    def __init__(self) -> None:
        self._drafts: dict[tuple[str, str], RuleSet] = {}  # (text, file name) -> rules; of the last request
        self._names_of_drafts = OnNames.of((), ())

    async def parse(
        self,
        files: Sequence[r.RuleFile],
        others: Iterable[RuleSet],
        own: Iterable[RuleSet] = (),
        *,
        any_name: bool = False,
    ) -> list[RuleSet]:
        """Parse the files of a request.

        A rule may use a trigger of any file in force (`others`) or in the same request, and follow
        rules of the same owner (`own`). Raises RuleFileError for faults and for names in use.
        `any_name`: triggers and rules need not be known.
        """
        others, own = list(others), list(own)
        wanted = [(f.text, f.path or f.label) for f in files]
        rules = frozenset(rule.name for s in own for rule in s.rules)
        names = OnNames(frozenset(t.name for s in others for t in s.triggers), rules)
        if names != self._names_of_drafts or not all(file in self._drafts for file in wanted):
            await self._forget()
            given = OnNames(None, None) if any_name else names
            parsed = await asyncio.to_thread(parse_together, wanted, OptionStructs(), given.triggers, given.rules)
            self._drafts = dict(zip(wanted, parsed, strict=True))
            self._names_of_drafts = names
        found = [self._drafts[file] for file in wanted]
        await asyncio.to_thread(check_unique, [*others, *found])
        await asyncio.to_thread(check_circles, found, own)
        return found

    async def _forget(self) -> None:
        drafts, self._drafts = list(self._drafts.values()), {}
        await _dispose(drafts)

    async def deployed(self, deployments: Sequence[Deployment]) -> dict[str, ParsedDeployment]:
        """Return the rules of deployed texts by label.

        Drafts of the last request are used if they are of these texts, and dropped.
        """
        drafts = {text: ruleset for (text, _), ruleset in self._drafts.items()}
        self._drafts = {}
        if not any(d.text in drafts for d in deployments):
            await _dispose(list(drafts.values()))
            drafts = {}
        return await asyncio.to_thread(lambda: {d.label: _parsed(d, drafts.pop(d.text, None)) for d in deployments})


async def _dispose(rulesets: list[RuleSet]) -> None:
    """Free rules that are not used any more, beside the event loop."""
    rules = [rule for ruleset in rulesets for rule in ruleset.rules]
    rulesets.clear()
    await asyncio.to_thread(dispose, rules)


def _parsed(d: Deployment, draft: RuleSet | None) -> ParsedDeployment:
    if draft is not None:
        return ParsedDeployment(msgspec.structs.replace(draft, file=d.label))
    try:
        return ParsedDeployment(parse(d.text, d.label, OptionStructs(), triggers=None, stored=True))
    except OncueError as e:  # deployed by another version of oncue
        log.error("the deployed rule file %s cannot be read: %s", d.label, e)
        return ParsedDeployment(RuleSet(d.label, d.text, (), ()), str(e))
    except Exception as e:  # a bug here; one text must not keep the server from its start
        log.exception("the deployed rule file %s cannot be read", d.label)
        return ParsedDeployment(RuleSet(d.label, d.text, (), ()), f"{type(e).__name__}: {e}")
