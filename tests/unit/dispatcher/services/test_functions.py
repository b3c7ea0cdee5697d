"""FunctionService: versions of names, bodies, and permissions."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from oncue.dispatcher.services.functions import FunctionService
from oncue.errors import Invalid, NotFound, NotReady, TooLarge
from oncue.protocol import api as r
from oncue.protocol.codec import encode
from oncue.protocol.records import FUNCTION_BYTES, INLINE_BYTES
from tests.unit.dispatcher.services.service_site import ADA, ADMIN, BOB, Site, function_request, with_site


def test_another_content_under_a_name_is_its_next_version(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        functions = FunctionService(site.context)
        first = await functions.register(ADA, function_request(result=1))
        second = await functions.register(ADA, function_request(result=2))
        assert (first.version, second.version) == (1, 2)
        assert (await functions.get(ADA, "f")).id == second.id
        assert "return n + 1" in (await functions.get(ADA, first.id)).source

    with_site(tmp_path, work)


def test_registering_the_same_content_again_appends_nothing(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        functions = FunctionService(site.context)
        first = await functions.register(ADA, function_request())
        before = await site.log.end_offsets(["oncue.registry"])
        again = await functions.register(ADA, function_request())
        assert again == first
        assert await site.log.end_offsets(["oncue.registry"]) == before

    with_site(tmp_path, work)


def test_a_large_body_is_stored_as_a_blob(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        functions = FunctionService(site.context)
        small = msgspec.msgpack.decode(function_request().body)
        large = r.FunctionRequest(name="f", body=encode([*small[:6], bytes(INLINE_BYTES), *small[7:]]))
        info = await functions.register(ADA, large)
        record = await site.view.function(info.id)
        assert record is not None
        assert record.body == b""
        assert site.context.blobs.read(info.id) == large.body
        assert info.source == small[5]

    with_site(tmp_path, work)


def test_a_list_has_the_functions_of_its_caller_and_an_admin_sees_all(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        functions = FunctionService(site.context)
        await functions.register(ADA, function_request("of_ada"))
        await functions.register(BOB, function_request("of_bob"))
        names = {}
        for caller in (ADA, BOB, ADMIN):
            names[caller.subject] = sorted(f.name for f in (await functions.page(caller, "", 50)).items)
        assert names == {"ada": ["of_ada"], "bob": ["of_bob"], "root": ["of_ada", "of_bob"]}

    with_site(tmp_path, work)


def test_what_cannot_be_a_function_is_refused(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        functions = FunctionService(site.context)
        with pytest.raises(Invalid, match="body cannot be read"):
            await functions.register(ADA, r.FunctionRequest(name="f", body=b"\xff"))
        with pytest.raises(Invalid, match="1 to 200 characters"):
            await functions.register(ADA, function_request(""))
        with pytest.raises(TooLarge):
            await functions.register(ADA, r.FunctionRequest(name="f", body=bytes(FUNCTION_BYTES + 1)))
        with pytest.raises(NotFound, match="no function 'f'"):
            await functions.get(ADA, "f")
        site.context.ready = False
        with pytest.raises(NotReady):
            await functions.register(ADA, function_request())

    with_site(tmp_path, work)
