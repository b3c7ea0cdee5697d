import sqlite3
from pathlib import Path

import pytest

from oncue.errors import Conflict, LogError
from oncue.protocol.records import Event
from oncue.triggers.file.ledger import EXISTING, FIRED, KEEP_GONE_US, FileRow, Ledger, PendingBatch, forget_fired_since
from oncue.triggers.file.stability import Fingerprint


def row(name: str, folder: str = "", state: int = FIRED, size: int = 1, ino: int = 7) -> FileRow:
    return FileRow(folder, name, state, ino, size, 1_700_000_000_000_000_000, 5)


def event(name: str) -> Event:
    return Event(id=name, source="file:///d", type="oncue.file.ready", data={"n": 1}, extensions={"oncuetimems": "9"})


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "l.db")


def test_a_pending_batch_comes_back_unchanged_until_it_is_complete(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "l.db")
    pending = PendingBatch([row("a"), row("b", "sub")], [event("a"), event("b")])
    first.store_pending(3, pending)
    assert first.find([("", "a")]) == {}
    first.close()
    second = Ledger(tmp_path / "l.db")
    assert second.pending() == [(3, pending)]
    second.complete(3, pending.rows)
    assert second.pending() == []
    assert set(second.find([("", "a"), ("sub", "b"), ("", "b")])) == {("", "a"), ("sub", "b")}
    second.complete(3, pending.rows)  # again: nothing changes
    assert second.count() == 2
    second.close()


def test_the_newest_state_is_found(ledger: Ledger) -> None:
    ledger.store([row("a", state=EXISTING)])
    ledger.store([row("a", size=2, ino=-(1 << 63))])
    (found,) = ledger.find([("", "a")]).values()
    assert (found.state, found.seen) == (FIRED, Fingerprint(-(1 << 63), 2, 1_700_000_000_000_000_000))
    assert ledger.listing("")["a"] == found


def test_store_unknown_does_not_overwrite_an_entry(ledger: Ledger) -> None:
    """A scan's listing is older than the entries stored meanwhile."""
    ledger.store([row("a")])
    assert ledger.store_unknown([row("a", state=EXISTING), row("b", state=EXISTING)]) == 1
    assert {name: found.state for name, found in ledger.listing("").items()} == {"a": FIRED, "b": EXISTING}
    assert (ledger.count(), ledger.count(EXISTING)) == (2, 1)
    assert ledger.store_unknown([]) == 0


def test_the_end_of_the_initial_scan_is_recorded(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "deep" / "l.db")
    first.set_meta(looking="x", selects="old")
    first.commit_meta(looking="", selects="new")
    first.close()
    second = Ledger(tmp_path / "deep" / "l.db")
    assert (second.meta("looking"), second.meta("selects"), second.meta("other")) == ("", "new", "")
    second.close()


def test_any_characters_in_names(ledger: Ledger) -> None:
    names = ["'; DROP TABLE files;--", '"', "a\nb", "[x]", "走", "\x01"]
    ledger.store([row(n, folder="q'\"") for n in names])
    assert set(ledger.listing("q'\"")) == set(names)
    assert len(ledger.find([("q'\"", n) for n in names])) == len(names)


def test_files_that_are_gone_come_back_or_are_pruned(ledger: Ledger) -> None:
    ledger.store([row("a"), row("b"), row("c", "sub")])
    ledger.mark_gone([("", "a"), ("", "b")], 100)
    ledger.mark_gone([("", "a")], 200)  # the first time counts
    ledger.mark_folder_gone("sub", 150)
    assert ledger.folders() == []
    ledger.mark_present([("", "b")])
    ledger.prune(100 + KEEP_GONE_US)
    assert set(ledger.listing("")) == {"b"}
    assert set(ledger.listing("sub")) == {"c"}
    assert ledger.folders() == [""]


def test_the_number_of_gone_files_is_bounded(ledger: Ledger) -> None:
    ledger.store([row(str(i)) for i in range(20)])
    for i in range(10):
        ledger.mark_gone([("", str(i))], 100 + i)
    ledger.prune(200, keep=4)
    assert sorted(map(int, ledger.listing(""))) == [6, 7, 8, 9, *range(10, 20)]


def test_a_failed_transaction_stores_nothing(ledger: Ledger) -> None:
    ledger.store_pending(1, PendingBatch([row("a")], [event("a")]))
    with pytest.raises((TypeError, sqlite3.Error)):
        ledger.complete(1, [("", None, 0, 1, 1, 1, 1)])  # type: ignore[list-item]
    assert len(ledger.pending()) == 1
    ledger.complete(1, [row("a")])


def test_a_ledger_in_use_or_damaged_is_refused(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "l.db")
    with pytest.raises(Conflict) as e:
        Ledger(tmp_path / "l.db")
    assert e.value.remedy
    first.close()
    Ledger(tmp_path / "l.db").close()
    (tmp_path / "bad.db").write_bytes(b"not a database, not at all" * 100)
    with pytest.raises(LogError, match="damaged") as e2:
        Ledger(tmp_path / "bad.db")
    assert "move it away" in e2.value.remedy


def test_files_that_fired_after_the_logs_end_are_forgotten(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "l.db")
    first.store(
        [row("early")._replace(at_us=10), row("late")._replace(at_us=30), row("old", state=EXISTING)._replace(at_us=30)]
    )
    first.close()
    assert forget_fired_since(tmp_path / "l.db", 20) == 1
    second = Ledger(tmp_path / "l.db")
    assert set(second.listing("")) == {"early", "old"}
    second.close()
