"""docs/history.md has every table and column."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from oncue.history.schema import TABLES

PAGE = (Path(__file__).parents[3] / "docs" / "history.md").read_text().partition("## Tables")[2]
ROWS = [
    (re.findall(r"`(\w+)`", cells[0]), cells[1].replace(" ", "").split(","), cells)
    for cells in (
        [cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| `")
    )
]


@pytest.mark.parametrize("name", TABLES)
def test_the_page_has_the_table_with_its_keys(name: str) -> None:
    (cells,) = [cells for names, _, cells in ROWS if names == [name] and len(cells) == 4]
    assert tuple(re.findall(r"`(\w+)`", cells[2])) == TABLES[name].key
    assert set(re.findall(r"`(\w+)`", cells[3])) == TABLES[name].references.keys()


@pytest.mark.parametrize("name", TABLES)
def test_the_page_has_every_column(name: str) -> None:
    known = {column for names, of, cells in ROWS if len(cells) == 3 and name in of for column in names}
    assert known <= TABLES[name].columns.keys()
    others = {"started_at", "ended_at", "task", "event", "id"}  # said once
    assert TABLES[name].columns.keys() - known <= others


def test_tables_refer_to_what_stands_before_them() -> None:
    before: set[str] = set()
    for name, table in TABLES.items():
        assert all(other in before and key in TABLES[other].columns for other, key in table.references.values())
        assert {*table.key, *table.references, *table.indexes, *table.searched} <= table.columns.keys()
        before.add(name)
