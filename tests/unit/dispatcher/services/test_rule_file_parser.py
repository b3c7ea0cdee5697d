"""RuleFileParser: each text is parsed once from dry run to reload."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from oncue.dispatcher.services.deployment import rule_file_parser
from oncue.dispatcher.services.deployment.rule_file_parser import RuleFileParser
from oncue.errors import RuleFileError
from oncue.protocol import api as r
from oncue.protocol.records import VERSION, Deployment
from tests.unit.dispatcher.services.rule_site import rule_file, rule_text

TRIGGER = "triggers:\n  - {name: door, kind: webhook, verify: none, type: t}\n"


def deployment(text: str, label: str = "tomo") -> Deployment:
    return Deployment(VERSION, label, 1, "ada", text, {})


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the label or path of each file that is parsed."""
    found: list[str] = []

    def together(files: Sequence[tuple[str, str]], *rest: Any) -> Any:
        found.extend(file for _, file in files)
        return parse_together(files, *rest)

    def alone(text: str, file: str, *rest: Any, **more: Any) -> Any:
        found.append(file)
        return parse(text, file, *rest, **more)

    parse_together, parse = rule_file_parser.parse_together, rule_file_parser.parse
    monkeypatch.setattr(rule_file_parser, "parse_together", together)
    monkeypatch.setattr(rule_file_parser, "parse", alone)
    return found


def test_a_text_is_parsed_once_from_dry_run_to_reload(parsed: list[str]) -> None:
    async def work() -> None:
        parser, file = RuleFileParser(), rule_file(path="/a/tomo.yaml")
        dry = await parser.parse([file], [])
        (again,) = await parser.parse([file], [])
        found = (await parser.deployed([deployment(file.text)]))["tomo"]
        assert dry == [again]
        assert (found.why, found.rules.file, found.rules.rules) == ("", "tomo", again.rules)

    asyncio.run(work())
    assert parsed == ["/a/tomo.yaml"]


def test_a_draft_is_put_in_force_once(parsed: list[str]) -> None:
    """The conditions of a rule have a state; a later deployment begins anew."""

    async def work() -> None:
        parser, file = RuleFileParser(), rule_file(rule_text() + "    when: data.n > 1\n")
        await parser.parse([file], [])
        first = (await parser.deployed([deployment(file.text)]))["tomo"]
        second = (await parser.deployed([deployment(file.text)]))["tomo"]
        assert first.rules.rules[0].when is not second.rules.rules[0].when

    asyncio.run(work())
    assert parsed == ["tomo", "tomo"]


def test_a_draft_is_checked_against_the_triggers_of_now() -> None:
    async def work() -> None:
        parser, file = RuleFileParser(), rule_file(rule_text().replace("{type: scan}", "door"))
        (door,) = await parser.parse([rule_file(TRIGGER, label="door")], [])
        await parser.parse([file], [door])
        with pytest.raises(RuleFileError, match="there is no trigger 'door'"):
            await parser.parse([file], [])

    asyncio.run(work())


def test_files_of_one_request_use_each_others_triggers_and_no_name_twice() -> None:
    async def work() -> None:
        parser = RuleFileParser()
        user = rule_file(rule_text().replace("{type: scan}", "door"))
        found = await parser.parse([user, rule_file(TRIGGER, label="door")], [])
        assert [len(s.rules) for s in found] == [1, 0]
        with pytest.raises(RuleFileError, match="is in tomo:2 already"):
            await parser.parse([rule_file(), rule_file(label="other")], [])
        with pytest.raises(RuleFileError, match="is in tomo:2 already"):
            await parser.parse([r.RuleFile(label="third", text=rule_text())], [found[0]])

    asyncio.run(work())


def test_a_text_of_another_version_is_empty_and_says_why() -> None:
    found = asyncio.run(RuleFileParser().deployed([deployment("rules: 5", "newer")]))["newer"]

    assert found.rules.rules == ()
    assert "`rules` is a list" in found.why
