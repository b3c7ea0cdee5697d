"""What the view knows of events: windows, dead letters, chains, retries and replays."""

from __future__ import annotations

from pathlib import Path

import pytest

from oncue.ids import event_digest
from oncue.protocol import cloudevents
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION, Call, DeadLetter, Event
from oncue.protocol.topics import EVENTS
from oncue.view.chains import event_accounts, letter_rows
from oncue.view.schema import open_writer


def test_letters_of_former_versions_are_found_by_their_events(tmp_path: Path) -> None:
    db = open_writer(tmp_path / "view.db")
    letter = DeadLetter(VERSION, "args", "why", 1, EVENTS, 0, 7, "r", ("/s", "a"), members=event_digest("/s", "b"))
    db.execute("INSERT INTO dead (id, at_us, owner, record) VALUES (3, 1, 'ada', ?)", (encode(letter),))
    db.execute("INSERT INTO dead (id, at_us, owner, record) VALUES (4, 1, 'ada', ?)", (b"\xc1",))

    letter_rows.add_missing(db)
    letter_rows.add_missing(db)

    events = {event for (event,) in db.execute("SELECT event FROM letter_event WHERE letter = 3")}
    assert events == {event_digest("/s", "a"), event_digest("/s", "b"), letter_rows.place_digest(7)}
    db.execute("DELETE FROM dead WHERE id = 3")
    assert db.execute("SELECT count(*) FROM letter_event").fetchone() == (0,)
    db.close()


@pytest.mark.parametrize("near", [0, 5, 4_000])
def test_pages_have_the_events_of_a_time_without_looking_through_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, near: int
) -> None:
    monkeypatch.setattr(event_accounts, "NEAR", near)
    db, looked = open_writer(tmp_path / "view.db"), list[str]()
    times = [*range(100, 140), 20, *range(140, 150)]  # one is late
    for n, at_ms in enumerate(times):
        value, _ = cloudevents.to_record(Event(id=str(n), source="/s", type="t"))
        given = (n + 1, n, "t", "/s", str(n), at_ms, value)
        db.execute("INSERT INTO event (n, place, type, source, id, at_ms, value) VALUES (?, ?, ?, ?, ?, ?, ?)", given)
    db.set_trace_callback(lambda sql: looked.append(sql) if "min(n)" in sql else None)

    def found(since_ms: int, until_ms: int) -> list[int]:
        ids, pages = list[int](), 0
        after: int | None = -1
        while after is not None and pages < 20:
            page, after = event_accounts.page(
                db, since_ms * 1000, until_ms * 1000, after, 3, lambda _, n: Call(VERSION, "f", "e", "o")
            )
            ids += [int(account.row.event.id) for account in page]
            pages += 1
        return ids

    for since_ms, until_ms in ((0, 0), (110, 145), (0, 100), (200, 0)):
        looked.clear()
        wanted = [n for n, at_ms in enumerate(times) if since_ms <= at_ms < (until_ms or 1_000)]
        assert found(since_ms, until_ms) == wanted
        assert len(looked) <= 2 or near < 10
    db.close()
