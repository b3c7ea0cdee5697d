"""The agent's journal: what is read back after torn, damaged and full disks."""

from __future__ import annotations

import errno
from pathlib import Path

import msgspec
import pytest

from oncue.endpoint.agent.journal import ENDED, HEAD, SPARE_BYTES, DiskFile, Journal, pack, scan
from oncue.endpoint.blocks.records import BlockHistory, BlockPhase, BlockRecord
from oncue.protocol.codec import encode
from oncue.protocol.records import OK, VERSION, Call, Ended, TaskRecord

CALL = encode(Call(VERSION, "ab" * 32, "ep", "me"))
IDS = [bytes([i]) * 16 for i in range(6)]


def fill(journal: Journal) -> None:
    """Six received; 0 and 1 ended (spool 0 and 1), spool 0 acked; 2 started; 3 started and given back."""
    journal.received(CALL, 1, 5, encode([TaskRecord(i, b"m") for i in IDS]))
    journal.started(1, IDS[0] + IDS[1] + IDS[2] + IDS[3])
    journal.requeued(1, IDS[3])
    journal.ended(0, CALL, 5, encode([Ended(IDS[0], 1, OK, 1, 2, b"m")]))
    journal.ended(1, CALL, 5, encode([Ended(IDS[1], 1, OK, 1, 2, b"m")]))
    journal.acked(0)
    assert journal.write()


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    file = DiskFile(tmp_path / "journal")
    journal = Journal(file, b"identity")
    assert journal.recovered.next_seq == 0
    fill(journal)
    file.close()
    file = DiskFile(tmp_path / "journal")
    again = Journal(file, b"another!")
    found = again.recovered
    file.close()
    assert again.identity == b"identity"
    assert [t.id for h in found.held for t in h.tasks] == IDS[2:]
    assert found.held[0].started == {IDS[0], IDS[1], IDS[2]}
    assert [f.seq for f in found.spooled] == [1]
    assert found.next_seq > 1_000_000, "numbers that a full disk kept out of the journal are leapt over"
    assert found.problems == []


def test_a_torn_end_is_cut_wherever_it_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    file = DiskFile(path)
    fill(Journal(file, b"identity"))
    file.close()
    whole = path.read_bytes()
    records, good, _ = scan(whole)
    assert good == len(whole)
    last = len(whole) - HEAD.size - len(records[-1][1])
    for size in range(last + 1, len(whole)):
        path.write_bytes(whole[:size])
        file = DiskFile(path)
        journal = Journal(file, b"another!")
        file.close()
        assert path.stat().st_size == last
        assert [f.seq for f in journal.recovered.spooled] == [0, 1], "the ack was torn"
        assert "torn" in journal.recovered.problems[0]


def test_damage_in_the_middle_costs_its_record_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    file = DiskFile(path)
    fill(Journal(file, b"identity"))
    file.close()
    whole = path.read_bytes()
    ends = [i for i in range(len(whole)) if whole[i : i + 3] == b"\xc9\x0c" + bytes([ENDED])]
    for at in range(ends[0], ends[1]):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        file = DiskFile(path)
        found = Journal(file, b"another!").recovered
        file.close()
        assert [f.seq for f in found.spooled] == [1]
        assert IDS[0] in [t.id for h in found.held for t in h.tasks], "its end was damaged"
        assert len(found.problems) == 1
        assert "skipped" in found.problems[0]


class FullFile(DiskFile):
    """A disk with so much room."""

    room = 1 << 30

    def append(self, data: bytes | bytearray) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        taken = super().append(data[: self.room])
        self.room -= taken
        return taken


@pytest.mark.parametrize("room", [0, 1, 10, 100])
def test_what_a_full_disk_did_not_take_is_written_later(tmp_path: Path, room: int) -> None:
    file = FullFile(tmp_path / "journal")
    journal = Journal(file, b"identity")
    file.room = room
    journal.received(CALL, 1, 5, encode([TaskRecord(i, b"m" * 50) for i in IDS]))
    assert not journal.write()
    assert "space" in journal.problem
    journal.started(1, IDS[0])
    assert not journal.write()
    file.room = 1 << 30
    assert journal.write()
    assert journal.problem == ""
    file.close()
    file = DiskFile(tmp_path / "journal")
    found = Journal(file, b"another!").recovered
    file.close()
    assert found.problems == []
    assert found.held[0].started == {IDS[0]}


def test_a_rewrite_replaces_all_at_once(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    file = DiskFile(path)
    journal = Journal(file, b"identity")
    fill(journal)
    journal.rewrite([pack(ENDED, encode((7, CALL, 5, [Ended(IDS[1], 1, OK, 1, 2, b"m")])))])
    journal.acked(6)
    assert journal.write()
    assert journal.size == path.stat().st_size
    file.close()
    file = DiskFile(path)
    again = Journal(file, b"another!")
    file.close()
    assert again.identity == b"identity"
    assert [f.seq for f in again.recovered.spooled] == [7]
    assert again.recovered.held == []


def test_a_full_disk_lets_a_journal_be_shortened(tmp_path: Path) -> None:
    class SmallDisk(DiskFile):
        """A disk for the spare file and 500,000 bytes more."""

        def append(self, data: bytes | bytearray) -> int:
            self._take(len(data) + (tmp_path / "journal").stat().st_size)
            return super().append(data)

        def _replace(self, data: bytes) -> None:
            self._take(len(data) + (tmp_path / "journal").stat().st_size)
            super()._replace(data)

        def _take(self, size: int) -> None:
            spare = tmp_path / "journal.spare"
            if size + (spare.stat().st_size if spare.exists() else 0) > 500_000 + SPARE_BYTES:
                raise OSError(errno.ENOSPC, "No space left on device")

    file = SmallDisk(tmp_path / "journal")
    journal = Journal(file, b"identity")
    shortened = 0
    for n in range(1_000):
        journal.ended(n, CALL, 5, encode([Ended(IDS[0], 1, OK, 1, 2, b"m" * 10_000)]))
        journal.acked(n)
        written = journal.write()
        if journal.wants_rewrite(100):
            shortened += 1
            assert journal.rewrite([pack(ENDED, encode((n, CALL, 5, [])))])
            written = journal.write()
        assert written, n
        assert journal.size == (tmp_path / "journal").stat().st_size
    assert 20 < shortened < 60
    assert (tmp_path / "journal.spare").stat().st_size == SPARE_BYTES
    file.close()


def test_the_newest_record_of_each_block_counts(tmp_path: Path) -> None:
    file = DiskFile(tmp_path / "journal")
    journal = Journal(file, b"identity")
    asked = BlockRecord("a1", BlockPhase.ASKED, 2, 8, 3600.0, "key", 5)
    other = msgspec.structs.replace(asked, id="b2")
    for block in (asked, other, msgspec.structs.replace(asked, phase=BlockPhase.PENDING, job="12")):
        journal.block(block)
    journal.block_history(BlockHistory({1: 2.0}, (3,)))
    assert journal.write()
    file.close()

    file = DiskFile(tmp_path / "journal")
    found = Journal(file, b"another!").recovered
    file.close()

    assert found.blocks == {"a1": msgspec.structs.replace(asked, phase=BlockPhase.PENDING, job="12"), "b2": other}
    assert found.block_history == BlockHistory({1: 2.0}, (3,))
