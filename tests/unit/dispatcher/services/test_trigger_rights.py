"""Rights of triggers in records of older versions, and of names that are no folder."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from oncue.dispatcher.services.tokens import TokenService
from oncue.dispatcher.services.trigger_rights import SecretStore
from oncue.errors import NotFound
from oncue.protocol import api as r
from oncue.triggers.base import Rights
from tests.unit.dispatcher.services.rule_site import RuleSite, rule_file, with_rules
from tests.unit.dispatcher.services.service_site import ADA, ADMIN


def test_an_older_record_has_an_admins_rights_if_its_owner_had_an_admins_token(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        await rules.deployments.deploy(ADA, r.DeployRequest(files=[rule_file()]))
        deployed = rules.deployed
        (now,) = deployed.deployments.values()
        assert now.by_admin is False
        older = msgspec.structs.replace(now, by_admin=None)
        assert not deployed.is_by_admin(older)

        request = r.TokenRequest(name="t", subject=ADA.subject, scopes=["admin"])
        await TokenService(rules.context).create(ADMIN, request)
        await deployed.sync()
        deployed.deployments = {older.label: older}
        rules.context.view.deployments = lambda: _given([older])  # type: ignore[method-assign,assignment]
        await deployed.reload()

        assert deployed.is_by_admin(older)
        assert not deployed.is_by_admin(now), "a record that says it is believed"

    with_rules(tmp_path, work)


async def _given(found: list[object]) -> list[object]:
    return found


@pytest.mark.parametrize("owner", [".", "..", "../..", "a/../..", "/", "bob", "", "%2e%2e"])
@pytest.mark.parametrize("name", ["key", "../key", "..", "ada/key", ""])
def test_a_secret_outside_the_owners_folder_is_not_found(tmp_path: Path, owner: str, name: str) -> None:
    (tmp_path / "secrets" / "ada").mkdir(parents=True)
    for place in ("key", "secrets/key", "secrets/ada/key"):
        (tmp_path / place).write_text("geheim")
    with pytest.raises(NotFound):
        SecretStore(tmp_path / "secrets").find(name, owner, Rights(owner=owner or "nobody"))


def test_an_owner_finds_what_was_given_and_an_admin_finds_all(tmp_path: Path) -> None:
    (tmp_path / "ada").mkdir()
    (tmp_path / "ada" / "key").write_text("hers\n")
    (tmp_path / "key").write_text("servers\n")
    store = SecretStore(tmp_path)
    assert store.find("key", "ada", Rights(owner="ada")) == "hers"
    assert store.find("key", "root", Rights()) == "servers"
    assert store.find("key", "", Rights()) == "servers"
