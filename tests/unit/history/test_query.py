"""Queries of an exported history: one SELECT, which only reads."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner

from oncue.cli.commands.history import history
from oncue.errors import Invalid, NotFound
from oncue.history.database import HistoryFile
from oncue.history.query import query


@pytest.fixture
def path(tmp_path: Path) -> Path:
    HistoryFile(tmp_path / "runs.db").close()
    with sqlite3.connect(tmp_path / "runs.db") as db:
        db.executemany("INSERT INTO rules (name, version) VALUES (?, ?)", [("a\x1b[31m", 1), ("b,c", None)])
        db.execute("INSERT INTO tasks (id) VALUES ('t')")
        db.execute("INSERT INTO outcomes (task, error_message) VALUES ('t', 'out of memory')")
    return tmp_path / "runs.db"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("DELETE FROM tasks", "does more than read"),
        ("ATTACH '{folder}/other.db' AS x", "does more than read"),
        ("ATTACH '/etc/passwd' AS x", "does more than read"),
        ("PRAGMA journal_mode = WAL", "does more than read"),
        ("VACUUM INTO '{folder}/other.db'", "does more than read|readonly"),
        ("CREATE TEMP TABLE x (y)", "does more than read"),
        ("SELECT load_extension('x')", "cannot be run|does more"),
        ("SELECT 1; SELECT 2", "cannot be run"),
        ("UPDATE sqlite_master SET sql = ''", "cannot be run.*may not be modified"),
        ("BEGIN", "does more than read"),
        ("", "no SELECT"),
        ("SELECT nothing_such FROM tasks", "no such column"),
        ("SELECT \x00", "cannot be run"),
    ],
)
def test_a_query_only_reads(path: Path, text: str, why: str) -> None:
    before = path.read_bytes()

    with pytest.raises(Invalid, match=why):
        list(query(path, text.replace("{folder}", str(path.parent)))[1])

    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["runs.db"]


def test_a_missing_file_is_named_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no file .*none\.db"):
        query(tmp_path / "none.db", "SELECT 1")
    assert not list(tmp_path.iterdir())


def test_errors_are_searched(path: Path) -> None:
    columns, rows = query(path, "SELECT error_message FROM outcomes_fts WHERE outcomes_fts MATCH 'memory'")
    assert (columns, list(rows)) == (["error_message"], [("out of memory",)])
    assert next(query(path, "SELECT count(*) FROM pragma_table_info('tasks')")[1])[0] > 20


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--csv"], 'name,version\na\x1b[31m,1\n"b,c",\n'),
        (["--table"], "name       version\na\\x1b[31m  1\nb,c\n"),
        ([], "name       version\na\\x1b[31m  1\nb,c\n"),
    ],
)
def test_the_forms_of_the_answer(path: Path, words: list[str], expected: str) -> None:
    done = CliRunner().invoke(history, ["query", "SELECT name, version FROM rules", "--db", str(path), *words])
    assert done.output == expected


def test_json_is_a_list_of_objects(path: Path) -> None:
    sql = "SELECT name, version, version, x'00ff' AS b FROM rules"
    done = CliRunner().invoke(history, ["query", sql, "--db", str(path), "--json"])
    rows = json.loads(done.output)
    assert rows[0] == {"name": "a\x1b[31m", "version": 1, "version_2": 1, "b": "AP8="}
    assert "\x1b" not in done.output
    empty = CliRunner().invoke(history, ["query", sql + " WHERE 0", "--db", str(path), "--json"])
    assert json.loads(empty.output) == []
