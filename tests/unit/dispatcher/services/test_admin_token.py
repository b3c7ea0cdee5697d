"""The admin token of the setting `admin_token_file`."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from oncue.dispatcher.auth.tokens import hash_token, new_token
from oncue.dispatcher.services.admin_token import accept_given_token
from oncue.errors import Invalid
from tests.unit.dispatcher.services.service_site import Site, with_site


def test_the_token_is_recorded_once_as_an_admins(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        token, digest = new_token()
        file = tmp_path / "admin"
        file.write_text(token + "\n")
        await accept_given_token(site.context, str(file))
        before = await site.log.end_offsets(["oncue.registry"])
        await accept_given_token(site.context, str(file))
        record = site.context.registry.token(digest)
        assert record is not None
        assert record.scopes == ("admin",)
        assert await site.log.end_offsets(["oncue.registry"]) == before

    with_site(tmp_path, work)


def test_a_revoked_token_is_not_accepted_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def work(site: Site) -> None:
        token, _ = new_token()
        file = tmp_path / "admin"
        file.write_text(token)
        await accept_given_token(site.context, str(file))
        record = site.context.registry.token(hash_token(token))
        assert record is not None
        await site.context.record([(f"token:{record.id}", msgspec.structs.replace(record, revoked=True))])
        await accept_given_token(site.context, str(file))
        known = site.context.registry.token(hash_token(token))
        assert known is not None
        assert known.revoked
        assert "was revoked" in caplog.text

    with_site(tmp_path, work)


def test_a_file_that_others_may_write_is_refused_and_one_that_they_may_read_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(site: Site) -> None:
        file = tmp_path / "admin"
        file.write_text(new_token()[0])
        file.chmod(0o646)
        with pytest.raises(Invalid, match="others may write"):
            await accept_given_token(site.context, str(file))
        file.chmod(0o644)
        await accept_given_token(site.context, str(file))
        assert "other users may read" in caplog.text

    with_site(tmp_path, work)


@pytest.mark.parametrize("content", [None, "", "oncue_short", "not a token"])
def test_a_file_without_a_token_is_refused(tmp_path: Path, content: str | None) -> None:
    async def work(site: Site) -> None:
        file = tmp_path / "admin"
        if content is not None:
            file.write_text(content)
        with pytest.raises(Invalid, match="admin_token_file"):
            await accept_given_token(site.context, str(file))
        assert site.context.registry.tokens() == []

    with_site(tmp_path, work)
