"""What the view knows of events: windows, dead letters, chains, retries and replays."""

from __future__ import annotations

from pathlib import Path

from oncue.ids import event_digest
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION, DeadLetter
from oncue.protocol.topics import EVENTS
from oncue.view.chains import letter_rows
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
