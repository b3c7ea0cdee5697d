"""DeadLetterService: letters are retried or dismissed once, by those who may see them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from oncue.dispatcher.services.dead_letters import DeadLetterService
from oncue.errors import Conflict, Invalid, NotFound
from oncue.log import Record
from oncue.protocol import api as r
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION, DeadLetter
from oncue.protocol.topics import DEAD, EVENTS
from tests.unit.dispatcher.services.service_site import ADA, ADMIN, BOB, Site, with_site


async def add_letters(site: Site, *owners: str, **fields: Any) -> None:
    """Append a dead letter of each of these owners; their numbers count from 0."""
    given: dict[str, Any] = {"topic": EVENTS, "record": b'{"kept": 1}', "rule": "r", **fields}
    letters = [DeadLetter(VERSION, "match", "it does not fit", 5, owner=owner, **given) for owner in owners]
    await site.log.append(DEAD, [Record(encode(letter)) for letter in letters])


async def open_numbers(site: Site, caller: Any) -> list[int]:
    await site.context.barrier((DEAD,))
    return sorted(i.id for i in (await DeadLetterService(site.context).page(caller, "", 50)).items)


def test_a_letter_of_a_rule_is_its_owners_and_others_are_for_admins(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        letters = DeadLetterService(site.context)
        await add_letters(site, "ada", "bob", "")
        assert [await open_numbers(site, c) for c in (ADA, BOB, ADMIN)] == [[0], [1], [0, 1, 2]]
        assert (await letters.get(ADA, 0)).reason == "it does not fit"
        for number in (1, 2, 3):
            with pytest.raises(NotFound):
                await letters.get(ADA, number)

    with_site(tmp_path, work)


def test_a_letter_that_the_view_does_not_have_yet_is_found(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        await add_letters(site, "ada")
        assert (await DeadLetterService(site.context).get(ADA, 0)).state == "open"

    with_site(tmp_path, work)


def test_a_retry_appends_the_record_again_and_resolves_the_letter(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        letters = DeadLetterService(site.context)
        await add_letters(site, "ada", headers=(("ce_id", b"1"),))
        await letters.retry(ADA, 0)
        (batch,) = await site.log.read([EVENTS], start="earliest").next()
        info = await letters.get(ADA, 0)
        assert [(x.value, x.headers) for x in batch.records] == [(b'{"kept": 1}', (("ce_id", b"1"),))]
        assert (info.state, info.settled_by) == ("retried", "ada")
        assert await open_numbers(site, ADA) == []

    with_site(tmp_path, work)


def test_a_letter_without_its_record_cannot_be_retried(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        await add_letters(site, "ada", record=b"")
        await add_letters(site, "ada", topic="oncue.registry")
        for number in (0, 1):
            with pytest.raises(Conflict, match="was not kept"):
                await DeadLetterService(site.context).retry(ADA, number)
        assert await open_numbers(site, ADA) == [0, 1]

    with_site(tmp_path, work)


def test_letters_are_dismissed_all_or_none(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        letters = DeadLetterService(site.context)
        await add_letters(site, "ada", "ada", "bob")
        with pytest.raises(NotFound):
            await letters.dismiss(ADA, r.DismissRequest(letters=[0, 2]))
        assert await open_numbers(site, ADA) == [0, 1]
        done = await letters.dismiss(ADA, r.DismissRequest(letters=[0, 0], reason="known"))
        info = await letters.get(ADA, 0)
        assert (done.count, info.state, info.settled_why) == (1, "dismissed", "known")

    with_site(tmp_path, work)


def test_dismissing_large_letters_keeps_one_in_memory(tmp_path: Path) -> None:
    count, size = 60, 500_000

    async def work(site: Site) -> None:
        letters = DeadLetterService(site.context)
        for _ in range(count):
            await add_letters(site, "ada", record=bytes(size))
        await site.context.barrier((DEAD,))
        tracemalloc.start()
        try:
            done = await letters.dismiss(ADA, r.DismissRequest(letters=list(range(count))))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert done.count == count
        assert peak < count * size / 4

    with_site(tmp_path, work)


def test_dismissing_all_leaves_those_of_others_and_those_that_are_resolved(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        letters = DeadLetterService(site.context)
        await add_letters(site, "ada", "bob", "ada")
        await letters.retry(ADA, 0)
        assert (await letters.dismiss(ADA, r.DismissRequest(all=True))).count == 1
        assert (await letters.dismiss(ADA, r.DismissRequest(all=True))).count == 0
        assert (await letters.get(ADA, 0)).state == "retried"
        assert await open_numbers(site, ADMIN) == [1]

    with_site(tmp_path, work)


@pytest.mark.parametrize("wrong", [r.DismissRequest(), r.DismissRequest(letters=[0], all=True)])
def test_a_dismissal_names_letters_or_all(tmp_path: Path, wrong: r.DismissRequest) -> None:
    async def work(site: Site) -> None:
        with pytest.raises(Invalid, match=r"\$\.letters"):
            await DeadLetterService(site.context).dismiss(ADA, wrong)

    with_site(tmp_path, work)
