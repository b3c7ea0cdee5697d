"""Results on their way to the server.

Pure, except for the journal and the cache handed in.

    add ──► gathered by call ──flush──► spooled (journal) ──► Results(seq) ──Ack──► dropped
     └── a large result ──► uploading (journal) ──UploadPart, UploadAck ... all──► gathered
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import msgspec

from oncue.endpoint.agent.fetcher import BlobCache
from oncue.endpoint.agent.journal import AttemptsEnded, Journal
from oncue.errors import Undecodable
from oncue.protocol import bridge
from oncue.protocol.codec import decode, encode
from oncue.protocol.payload import FILES, REF, BlobName, blobs_of, files_of
from oncue.protocol.records import ERROR, OK, Ended, Failure, Stored

FRAME_TASKS = 256
FRAME_BYTES = 4 << 20
FLUSH_US = 1_000  # after a frame, the next one waits for more results
UNACKED_BYTES = 32 << 20  # sent and not acked, at most
UPLOAD_TIMEOUT_US = 30_000_000

_MAY_HAVE_BLOBS = frozenset((REF, FILES))
CallKey = tuple[bytes, int]  # (call, accepted_us)


class SpooledResults(msgspec.Struct):
    """A frame of results in the spool."""

    seq: int
    call: bytes
    accepted_us: int
    count: int
    body: bytes


class AttemptKey(Stored, frozen=True):
    """First fields of an Ended: the attempt's key."""

    id: bytes
    attempt: int


class UploadingEnd(msgspec.Struct):
    """An ended attempt, and the blobs that must be uploaded first."""

    key: CallKey
    ended: Ended
    missing: dict[str, None]


class ResultUpload(msgspec.Struct):
    """Upload of a blob. Each part is sent when the one before was acked."""

    sha256: str
    size: int
    ends: list[UploadingEnd]
    at: int = 0
    in_flight: bool = False  # a part is under way
    sent_us: int = 0


class Outbox:
    """Spool of results, numbered by `seq`, and uploads of large ones."""

    def __init__(self, journal: Journal, cache: BlobCache, uploaded: Callable[[str], None]) -> None:
        self._journal, self._cache, self._uploaded = journal, cache, uploaded
        self._gathered: dict[CallKey, list[Ended]] = {}
        self.gathered = 0
        self._last_flush_us = 0
        self.spool: OrderedDict[int, SpooledResults] = OrderedDict()
        self.uploads: OrderedDict[str, ResultUpload] = OrderedDict()
        self._uploading: dict[tuple[bytes, int], UploadingEnd] = {}  # by task and attempt
        self.bytes = 0  # of the spool
        self.next_seq = journal.recovered.next_seq
        self._sent_seq = -1
        self.acked_seq = -1
        self._unacked = 0  # bytes
        for frame in journal.recovered.spooled:
            ends = decode(list[Ended], frame.body)
            self._add(SpooledResults(frame.seq, frame.call, frame.accepted_us, len(ends), bytes(frame.body)))
        for frame in journal.recovered.uploading:
            for e in decode(list[Ended], frame.body):
                self._upload((frame.call, frame.accepted_us), e, blobs_of_end(e))

    # ------------------------------------------------------------ in

    def add(self, key: CallKey, ends: list[Ended]) -> None:
        """Add ended attempts of one call."""
        for e in ends:
            if e.value[:1] in _MAY_HAVE_BLOBS or e.status:
                ends = [e for e in ends if not self._start_upload(key, e)]
                break
        if ends:
            self._gathered.setdefault(key, []).extend(ends)
            self.gathered += len(ends)

    def _start_upload(self, key: CallKey, e: Ended) -> bool:
        """Return True if blobs of this result must be uploaded first."""
        blobs = blobs_of_end(e)
        if blobs:
            self._journal.uploading(key[0], key[1], encode([e]))
            self._upload(key, e, blobs)
        return bool(blobs)

    def _upload(self, key: CallKey, e: Ended, blobs: tuple[BlobName, ...]) -> None:
        waits = self._uploading[e.id, e.attempt] = UploadingEnd(key, e, {})
        for blob in blobs:
            try:
                size = self._cache.blob_size(blob.sha256)
                if size != blob.size_bytes:
                    raise OSError(f"the file has {size:,} bytes instead of {blob.size_bytes:,}")
            except OSError as why:
                waits.ended = without_blob(waits.ended, blob.sha256, f"is not there any more: {why}")
                continue
            upload = self.uploads.get(blob.sha256)
            if upload is None:
                upload = self.uploads[blob.sha256] = ResultUpload(blob.sha256, size, [])
            if blob.sha256 not in waits.missing:
                waits.missing[blob.sha256] = None
                upload.ends.append(waits)
        self._gather_uploaded(waits)

    def _gather_uploaded(self, end: UploadingEnd) -> None:
        """Gather a result if all its blobs are uploaded."""
        if not end.missing and self._uploading.pop((end.ended.id, end.ended.attempt), None) is not None:
            self._gathered.setdefault(end.key, []).append(end.ended)
            self.gathered += 1

    # ------------------------------------------------------------ out

    def due_us(self) -> int | None:
        """Return when to flush; None if nothing is gathered."""
        return self._last_flush_us + FLUSH_US if self.gathered else None

    def flush(self, now_us: int, *, force: bool = False) -> None:
        """Spool the gathered results.

        The first after a pause goes at once. The next ones wait up to FLUSH_US, to share a frame.
        """
        if not self.gathered:
            return
        if not force and self.gathered < FRAME_TASKS and 0 <= now_us - self._last_flush_us < FLUSH_US:
            return
        self._last_flush_us = now_us
        gathered, self._gathered, self.gathered = self._gathered, {}, 0
        for key, ends in gathered.items():
            for i in range(0, len(ends), FRAME_TASKS):
                self._spool(key, ends[i : i + FRAME_TASKS])

    def _spool(self, key: CallKey, ends: list[Ended]) -> None:
        body = encode(ends)
        if len(body) > FRAME_BYTES and len(ends) > 1:
            half = len(ends) // 2
            self._spool(key, ends[:half])
            self._spool(key, ends[half:])
            return
        seq, self.next_seq = self.next_seq, self.next_seq + 1
        self._journal.ended(seq, key[0], key[1], body)
        self._add(SpooledResults(seq, key[0], key[1], len(ends), body))

    def _add(self, entry: SpooledResults) -> None:
        self.spool[entry.seq] = entry
        self.bytes += len(entry.body)

    def withdraw_recalled(self, ids: set[bytes]) -> None:
        """Remove the results that say that these tasks were given back: they came again."""

        def left(ends: list[Ended]) -> list[Ended]:
            return [e for e in ends if e.id not in ids or e.value != bridge.RECALLED]

        self._gathered = {key: left(ends) for key, ends in self._gathered.items()}
        self.gathered = sum(map(len, self._gathered.values()))
        for entry in self.spool.values():
            ends = left(decode(list[Ended], entry.body))
            if len(ends) < entry.count:
                body = encode(ends)
                shorter = len(entry.body) - len(body)
                self.bytes -= shorter
                if entry.seq <= self._sent_seq:
                    self._unacked -= shorter
                entry.body, entry.count = body, len(ends)

    def unsent(self) -> list[SpooledResults]:
        """Return the frames to send now, in order, and mark them as sent."""
        out: list[SpooledResults] = []
        if not self.spool or next(reversed(self.spool)) <= self._sent_seq:
            return out
        for entry in _after(self.spool, self._sent_seq):
            if self._unacked > UNACKED_BYTES:
                break
            self._unacked += len(entry.body)
            self._sent_seq = entry.seq
            out.append(entry)
        return out

    def next_parts(self, now_us: int) -> list[tuple[bridge.UploadPart, bytes]]:
        """Return the next part of the first upload."""
        out: list[tuple[bridge.UploadPart, bytes]] = []
        while self.uploads and not out:
            upload = next(iter(self.uploads.values()))
            if upload.in_flight and now_us - upload.sent_us < UPLOAD_TIMEOUT_US:
                break
            try:
                body = self._cache.read_blob(upload.sha256, upload.at, bridge.PART_BYTES)
            except OSError as e:
                self._finish_upload(upload, f"is not there any more: {e}")
                continue
            upload.in_flight, upload.sent_us = True, now_us
            out.append((bridge.UploadPart(upload.sha256, upload.at, upload.size), body))
        return out

    # ------------------------------------------------------------ the server's answers

    def on_upload_ack(self, ack: bridge.UploadAck) -> None:
        upload = self.uploads.get(ack.sha256)
        if upload is None:
            return
        if ack.why:
            self._finish_upload(upload, f"was refused by the server: {ack.why}")
        elif ack.offset_bytes >= upload.size:
            self._finish_upload(upload, "")
        else:
            upload.at, upload.in_flight = ack.offset_bytes, False

    def _finish_upload(self, upload: ResultUpload, why: str) -> None:
        del self.uploads[upload.sha256]
        for end in upload.ends:
            end.missing.pop(upload.sha256, None)
            if why:
                end.ended = without_blob(end.ended, upload.sha256, why)
            self._gather_uploaded(end)
        self._uploaded(upload.sha256)

    def on_ack(self, seq: int) -> None:
        """Drop results up to `seq`: they are durable at the server."""
        if not self.spool or next(iter(self.spool)) > seq:
            return
        while self.spool and next(iter(self.spool)) <= seq:
            _, entry = self.spool.popitem(last=False)
            self.bytes -= len(entry.body)
            if entry.seq <= self._sent_seq:
                self._unacked -= len(entry.body)
        self.acked_seq = max(self.acked_seq, seq)
        self._journal.acked(seq)

    def new_session(self, durable_seq: int) -> None:
        """Send everything again that is not durable at the server."""
        self.next_seq = max(self.next_seq, durable_seq + 1)
        self.on_ack(durable_seq)
        self._sent_seq, self._unacked = -1, 0
        for upload in self.uploads.values():
            upload.at, upload.in_flight = 0, False

    # ------------------------------------------------------------ for inventory and journal

    def inventory(self) -> list[tuple[bytes, int]]:
        """Return (id, attempt) of all results that are not acked."""
        out = [(e.id, e.attempt) for entry in self.spool.values() for e in decode(list[AttemptKey], entry.body)]
        out += [(e.id, e.attempt) for ends in self._gathered.values() for e in ends]
        out += self._uploading
        return out

    def journal_frames(self) -> list[tuple[bool, AttemptsEnded]]:
        """Return (True if spooled, frame) of all that the journal must hold.

        Flush before.
        """
        out = [(True, AttemptsEnded(n.seq, n.call, n.accepted_us, msgspec.Raw(n.body))) for n in self.spool.values()]
        out += [
            (False, AttemptsEnded(-1, *end.key, msgspec.Raw(encode([end.ended])))) for end in self._uploading.values()
        ]
        return out


def _after(spool: OrderedDict[int, SpooledResults], seq: int) -> list[SpooledResults]:
    """Return the frames behind `seq`.

    Reads from the end, where the new ones are.
    """
    out: list[SpooledResults] = []
    for entry in reversed(spool.values()):
        if entry.seq <= seq:
            break
        out.append(entry)
    out.reverse()
    return out


def blobs_of_end(e: Ended) -> tuple[BlobName, ...]:
    """Return the blobs to which an ended attempt refers."""
    if e.status == OK:
        return blobs_of(e.value)
    try:
        return tuple(BlobName(f.sha256, f.size_bytes) for f in decode(Failure, e.value).files)
    except Undecodable:
        return ()


def without_blob(e: Ended, sha256: str, why: str) -> Ended:
    """Return an ended attempt one of whose blobs is not to be had.

    A result becomes an error; a failure stays what it is, without the file.
    """
    if e.status == OK:
        name = next((f.name for f in files_of(e.value) if f.sha256 == sha256), "")
        what = f"its output file {name} {why}" if name else f"its large result {why}"
        return msgspec.structs.replace(e, status=ERROR, value=encode(Failure("oncue.BlobMissing", what)))
    failure = decode(Failure, e.value)
    left = tuple(f for f in failure.files if f.sha256 != sha256)
    return msgspec.structs.replace(e, value=encode(msgspec.structs.replace(failure, files=left)))
