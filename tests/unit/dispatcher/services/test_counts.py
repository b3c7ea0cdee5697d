"""How many rule files, rules, triggers, functions, tokens and endpoints one person may have."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from oncue.dispatcher.services import functions, tokens
from oncue.dispatcher.services.deployment.checks import PROGRAM, RULE_FILES, RULES, TRIGGERS, check_counts
from oncue.dispatcher.services.functions import FunctionService
from oncue.dispatcher.services.tokens import TokenService
from oncue.errors import Conflict
from oncue.protocol import api as r
from tests.unit.dispatcher.services.service_site import ADA, ADMIN, BOB, Site, function_request, with_site


def rule_set(rules: int = 0, triggers: int = 0, program_size: int = 0) -> Any:
    kinds = [SimpleNamespace(kind="webhook")] * triggers
    return SimpleNamespace(rules=[None] * rules, triggers=kinds, program_size=program_size)


def deployed(files: dict[str, Any]) -> Any:
    owners = {label: SimpleNamespace(owner=label.partition("-")[0]) for label in files}
    return SimpleNamespace(rulesets=files, deployments=owners)


@pytest.mark.parametrize(
    ("had", "added", "what"),
    [
        ([rule_set()] * RULE_FILES, rule_set(), "rule files"),
        ([rule_set(RULES - 1), rule_set(1)], rule_set(1), "rules"),
        ([rule_set(0, TRIGGERS - 1)], rule_set(0, 2), "triggers"),
        ([rule_set(program_size=PROGRAM)], rule_set(program_size=1), "instructions of globs and regular expressions"),
    ],
)
def test_what_a_person_has_in_force_is_bounded(had: list[Any], added: Any, what: str) -> None:
    now = deployed({f"ada-{n}": found for n, found in enumerate(had)})
    with pytest.raises(Conflict, match=f"{what} in force; at most"):
        check_counts(ADA, {"ada-new": added}, now)
    check_counts(ADA, {"ada-0": rule_set()}, now)
    check_counts(BOB, {"bob-new": added}, now)
    check_counts(ADMIN, {"new": added}, now)


def test_versions_of_functions_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "FUNCTIONS", 2)

    async def work(site: Site) -> None:
        service = FunctionService(site.context)
        for n in range(2):
            await service.register(ADA, function_request(result=n))
        with pytest.raises(Conflict, match="you have 2 versions of functions; at most 2 are kept"):
            await service.register(ADA, function_request(result=2))
        await service.register(ADA, function_request(result=1))
        await service.register(BOB, function_request(result=2))

    with_site(tmp_path, work)


def test_tokens_that_were_revoked_count_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "TOKENS_EVER", 3)

    async def work(site: Site) -> None:
        service = TokenService(site.context)
        for n in range(3):
            made = await service.create(ADA, r.TokenRequest(name=f"t{n}", scopes=["user"]))
            await service.revoke(ADA, made.id)
        with pytest.raises(Conflict, match="ada has made 3 tokens, with revoked and expired ones"):
            await service.create(ADA, r.TokenRequest(name="t", scopes=["user"]))
        await service.create(BOB, r.TokenRequest(name="t", scopes=["user"]))

    with_site(tmp_path, work)
