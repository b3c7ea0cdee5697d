"""Dead letters in the view: owners and resolutions."""

from __future__ import annotations

from pathlib import Path

import pytest

from oncue.log import Record
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION, DeadLetter, Resolution
from oncue.protocol.topics import DEAD
from oncue.view import View
from oncue.view.lookups import dead_text
from oncue.view.record_rows import pack_position, unpack_position
from oncue.view.schema import open_writer
from tests.unit.view.view_harness import ViewHarness, run


def letter(n: int, owner: str = "") -> DeadLetter:
    return DeadLetter(VERSION, "args", f"why {n}", n, owner=owner)


async def numbers(view: View, owner: str = "", settled: bool = False) -> list[int]:
    """Return the ids on all pages."""
    found: list[int] = []
    cursor: str | None = ""
    while cursor is not None:
        rows, cursor = await view.dead(cursor, 2, owner, settled)
        found += [row.id for row in rows]
    return found


def test_resolved_letters_leave_the_list_and_the_last_resolution_counts(tmp_path: Path) -> None:
    dismissed = Resolution(VERSION, (0, 2, 99), "dismissed", "ann", "test shots", 7)
    retried = Resolution(VERSION, (2,), "retried", "bob", "", 8)

    async def work(harness: ViewHarness) -> None:
        view = harness.view
        await harness.append(DEAD, *[letter(n) for n in range(5)])
        assert await numbers(view) == [4, 3, 2, 1, 0]
        applied = await harness.append(DEAD, dismissed)  # 99: deleted, or never existed
        assert applied.dead == []
        assert await numbers(view) == [4, 3, 1]
        assert await numbers(view, settled=True) == [4, 3, 2, 1, 0]
        row = await view.dead_letter(2)
        assert row is not None
        assert row.settled is not None
        assert (row.settled.how, row.settled.by, row.settled.reason, row.settled.at_us) == (
            ("dismissed", "ann", "test shots", 7)
        )
        await harness.append(DEAD, retried)
        row = await view.dead_letter(2)
        assert row is not None
        assert row.settled is not None
        assert (row.settled.how, row.settled.by) == ("retried", "bob")
        await harness.append(DEAD, letter(5))  # resolutions have offsets too: ids have gaps
        assert await numbers(view) == [7, 4, 3, 1]

    run(tmp_path, work)


def test_letters_are_listed_by_owner(tmp_path: Path) -> None:
    async def work(harness: ViewHarness) -> None:
        await harness.append(DEAD, letter(0, "ann"), letter(1, "bob"), letter(2), letter(3, "ann"))
        await harness.append(DEAD, Resolution(VERSION, (0,), "dismissed", "ann"))
        assert await numbers(harness.view, "ann") == [3]
        assert await numbers(harness.view, "ann", settled=True) == [3, 0]
        assert await numbers(harness.view, "bob") == [1]
        assert await numbers(harness.view) == [3, 2, 1]

    run(tmp_path, work)


def test_a_letter_id_is_its_partition_and_offset(tmp_path: Path) -> None:
    async def work(harness: ViewHarness) -> None:
        await harness.append(DEAD, letter(0), letter(1))
        await harness.append(DEAD, letter(0), letter(1), partition=3)
        await harness.append(DEAD, Resolution(VERSION, (1,), "dismissed"), partition=3)
        assert await numbers(harness.view) == [pack_position(3, 0), 1, 0]

    run(tmp_path, work)
    assert unpack_position(pack_position(3, 1)) == (3, 1)
    assert unpack_position(7) == (0, 7)


def test_letters_without_an_owner_and_kinds_of_a_newer_version(tmp_path: Path) -> None:
    old = Record(encode([VERSION, "args", "why", 5, "oncue.events", 0, 7, "r", None, b"", "do this"]))

    async def work(harness: ViewHarness) -> None:
        await harness.append(DEAD, old, Record(encode(["postponed", VERSION, [0]])), letter(1))
        row = await harness.view.dead_letter(0)
        assert row is not None
        assert (row.letter.rule, row.letter.remedy, row.letter.owner, row.settled) == ("r", "do this", "", None)
        assert [(s.topic, s.kind) for s in await harness.view.skipped()] == [(DEAD, "postponed")]
        assert await numbers(harness.view) == [2, 0]

    run(tmp_path, work)


@pytest.mark.parametrize(
    ("owner", "settled", "wanted"),
    [
        ("", False, "dead USING INDEX dead_open (id<?)"),
        ("", True, "dead USING INTEGER PRIMARY KEY (rowid<?)"),
        ("ann", False, "dead USING INDEX dead_owner_open (owner=? AND rowid<?)"),
        ("ann", True, "dead USING INDEX dead_owner (owner=? AND rowid<?)"),
    ],
)
def test_lists_use_their_index(tmp_path: Path, owner: str, settled: bool, wanted: str) -> None:
    db = open_writer(tmp_path / "view.db")
    given = (9, *((owner,) if owner else ()), 9)
    found = " | ".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {dead_text(owner, settled)}", given))
    db.close()
    assert wanted in found
    assert "TEMP B-TREE" not in found
