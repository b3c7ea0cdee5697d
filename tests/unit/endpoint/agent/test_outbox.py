"""Outbox: the spool of results and the uploads of large ones."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from oncue.endpoint.agent.journal import Journal
from oncue.endpoint.agent.outbox import FLUSH_US, FRAME_TASKS, Outbox
from oncue.protocol.bridge import UploadAck
from oncue.protocol.codec import decode, encode
from oncue.protocol.payload import Ref, pack_ref, pack_with_files
from oncue.protocol.records import ERROR, OK, Ended, Failure
from oncue.protocol.run_options import TaskFile
from tests.simulation.site import MemoryCache, MemoryFile

KEY = (b"call", 7)
LARGE = b"a large result"
SHA = hashlib.sha256(LARGE).hexdigest()


class Fixture:
    """An outbox with its journal, its cache and the hashes that it uploaded."""

    def __init__(self, file: MemoryFile | None = None, cache: MemoryCache | None = None) -> None:
        self.file = file or MemoryFile()
        self.journal = Journal(self.file, b"journal1")
        self.cache = cache or MemoryCache()
        self.uploaded: list[str] = []
        self.outbox = Outbox(self.journal, self.cache, self.uploaded.append)

    def sent_ids(self) -> list[list[int]]:
        frames = self.outbox.unsent()
        return [[int.from_bytes(e.id, "big") for e in decode(list[Ended], f.body)] for f in frames]


@pytest.fixture
def fixture() -> Fixture:
    return Fixture()


def end(n: int, value: bytes = b"mv") -> Ended:
    return Ended(n.to_bytes(16, "big"), 1, OK, 1, 2, value)


def large_end(n: int) -> Ended:
    return end(n, pack_ref(Ref(SHA, len(LARGE))))


def test_the_first_result_after_a_pause_goes_at_once_and_the_next_ones_share_a_frame(fixture: Fixture) -> None:
    outbox, now = fixture.outbox, 1_000_000
    outbox.add(KEY, [end(1)])
    outbox.flush(now)
    assert fixture.sent_ids() == [[1]]
    outbox.add(KEY, [end(2)])
    outbox.flush(now + FLUSH_US // 2)
    assert fixture.sent_ids() == []
    assert outbox.due_us() == now + FLUSH_US
    outbox.add(KEY, [end(3)])
    outbox.flush(now + FLUSH_US)
    assert fixture.sent_ids() == [[2, 3]]
    assert outbox.due_us() is None


def test_many_results_are_cut_into_frames(fixture: Fixture) -> None:
    fixture.outbox.add(KEY, [end(n) for n in range(FRAME_TASKS + 1)])
    fixture.outbox.flush(1_000_000)
    assert [len(ids) for ids in fixture.sent_ids()] == [FRAME_TASKS, 1]


def test_a_new_session_sends_again_what_is_not_durable(fixture: Fixture) -> None:
    for n in (1, 2):
        fixture.outbox.add(KEY, [end(n)])
        fixture.outbox.flush(1_000_000, force=True)
    assert fixture.sent_ids() == [[1], [2]]
    fixture.outbox.new_session(next(iter(fixture.outbox.spool)))
    assert fixture.sent_ids() == [[2]]
    assert [int.from_bytes(i, "big") for i, _ in fixture.outbox.inventory()] == [2]


def test_the_spool_survives_a_restart(fixture: Fixture) -> None:
    fixture.outbox.add(KEY, [end(1)])
    fixture.outbox.flush(1_000_000)
    fixture.journal.write()
    restarted = Fixture(fixture.file)
    assert restarted.sent_ids() == [[1]]
    assert restarted.outbox.next_seq > fixture.outbox.next_seq


def test_a_large_result_is_spooled_when_it_is_uploaded(fixture: Fixture) -> None:
    fixture.cache.whole[SHA] = LARGE
    fixture.outbox.add(KEY, [large_end(1)])
    fixture.outbox.flush(1_000_000)
    assert fixture.sent_ids() == []
    ((part, body),) = fixture.outbox.next_parts(1_000_000)
    assert (part.sha256, body) == (SHA, LARGE)
    fixture.outbox.on_upload_ack(UploadAck(SHA, len(LARGE)))
    fixture.outbox.flush(2_000_000)
    assert fixture.sent_ids() == [[1]]
    assert fixture.uploaded == [SHA]


def test_a_large_result_whose_file_is_gone_ends_as_an_error(fixture: Fixture) -> None:
    fixture.outbox.add(KEY, [large_end(1)])
    fixture.outbox.flush(1_000_000)
    (frame,) = fixture.outbox.unsent()
    (ended,) = decode(list[Ended], frame.body)
    assert ended.status == ERROR
    assert b"oncue.BlobMissing" in ended.value


FILES = {hashlib.sha256(content).hexdigest(): content for content in (b"one", b"two")}
NAMED = tuple(TaskFile(f"{content.decode()}.h5", sha256, 3) for sha256, content in FILES.items())


def upload_all(fixture: Fixture) -> list[str]:
    """Upload what the outbox has; return the hashes."""
    done = []
    while parts := fixture.outbox.next_parts(1_000_000):
        ((part, _),) = parts
        done.append(part.sha256)
        fixture.outbox.on_upload_ack(UploadAck(part.sha256, part.size_bytes))
    return done


def spooled(fixture: Fixture) -> list[Ended]:
    fixture.outbox.flush(9_000_000, force=True)
    return [e for frame in fixture.outbox.unsent() for e in decode(list[Ended], frame.body)]


def test_a_result_waits_until_each_of_its_files_is_uploaded(fixture: Fixture) -> None:
    fixture.cache.whole |= FILES
    value = pack_with_files(b"mv", NAMED)
    fixture.outbox.add(KEY, [end(1, value), end(2)])
    assert [e.id[-1] for e in spooled(fixture)] == [2]
    assert len(fixture.outbox.inventory()) == 2

    assert upload_all(fixture) == [f.sha256 for f in NAMED]

    assert [e.value for e in spooled(fixture)] == [value]
    assert fixture.uploaded == [f.sha256 for f in NAMED]


def test_files_of_a_failure_are_uploaded_also_after_a_restart(fixture: Fixture) -> None:
    failure = encode(Failure("x", "exit:75", exit_code=75, files=NAMED))
    fixture.cache.whole |= FILES
    fixture.outbox.add(KEY, [msgspec.structs.replace(end(1, failure), status=ERROR)])
    fixture.journal.write()

    restarted = Fixture(fixture.file, fixture.cache)

    assert spooled(restarted) == []
    assert len(upload_all(restarted)) == 2
    assert [e.value for e in spooled(restarted)] == [failure]


def test_a_file_that_is_gone_fails_a_success_and_leaves_a_failure_as_it_is(fixture: Fixture) -> None:
    fixture.cache.whole[NAMED[0].sha256] = b"one"
    failed = encode(Failure("x", "exit:75", exit_code=75, files=NAMED))
    fixture.outbox.add(KEY, [end(1, pack_with_files(b"mv", NAMED))])
    fixture.outbox.add(KEY, [msgspec.structs.replace(end(2, failed), status=ERROR)])
    upload_all(fixture)

    first, second = sorted(spooled(fixture), key=lambda e: e.id)

    assert (first.status, decode(Failure, first.value).type) == (ERROR, "oncue.BlobMissing")
    assert "its output file two.h5 is not there any more" in decode(Failure, first.value).message
    assert decode(Failure, second.value) == Failure("x", "exit:75", exit_code=75, files=NAMED[:1])
