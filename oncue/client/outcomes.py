"""OutcomeReceiver: the thread that reads the outcome stream.

    handles ◄── Batch.ended ◄── this thread ◄── GET /v1/outcomes?stream=… ◄── server

After each connect, the outcomes of all open batches are requested, because the server may have sent
them to a stream that was not read any more.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from oncue.client.batch import ACCEPTED, Batch
from oncue.client.http import LIMITED_S, Answer, Broken, Connection, Http, problem
from oncue.errors import OncueError, RateLimited
from oncue.ids import PREFIX
from oncue.protocol.api import Outcome

log = logging.getLogger("oncue.client")
MSGPACK = "application/msgpack"
SILENCE_S = 60.0  # a stream without even a keep-alive for this long is dead
IDS_PER_REQUEST = 16_384
CHECKS_S = (30.0, 60.0, 120.0, 300.0)  # pauses between requests for overdue outcomes
_encode = msgspec.msgpack.Encoder().encode
_outcomes = msgspec.msgpack.Decoder(list[Outcome]).decode


class OutcomeReceiver:
    """Store outcomes in the open batches, from the stream or on request.

    `patience_s`: how long the server may be away before waiting callers get an error.
    """

    def __init__(self, http: Http, patience_s: float) -> None:
        self.http = http
        self.patience_s = patience_s
        self.reset()

    def reset(self) -> None:
        """Make fresh state, of which a forked child shares nothing with its parent."""
        self.gone: OncueError | None = None  # why no outcome comes; waiting callers raise it
        self.batches: dict[bytes, Batch[Any]] = {}  # open ones, by prefix
        self.stream = uuid.uuid4().hex
        self.connected = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._connection: Connection | None = None
        self._stop = threading.Event()

    # ------------------------------------------------------------ batches

    def add(self, batch: Batch[Any]) -> None:
        self.batches[batch.prefix] = batch

    def remove(self, batch: Batch[Any]) -> None:
        self.batches.pop(batch.prefix, None)

    def mark_accepted(self, batch: Batch[Any]) -> None:
        with self._lock:
            if batch.complete:  # all outcomes came before the answer to the POST
                self.batches.pop(batch.prefix, None)
            batch.accepted = True  # last: readers of this flag rely on the rest
        batch.wake(ACCEPTED)

    def pending(self) -> list[Batch[Any]]:
        """Return batches not yet accepted or rejected, in the order of submission."""
        return [b for b in list(self.batches.values()) if not b.accepted and b.error is None]

    def store(self, outcomes: Sequence[Outcome]) -> None:
        """Store outcomes in their batches. Duplicates and unknown tasks are dropped."""
        batches = self.batches
        updates: list[tuple[Batch[Any], list[int]]] = []
        with self._lock:
            prefix = b""
            batch: Batch[Any] | None = None
            fresh: list[int] = []
            for outcome in outcomes:
                task = outcome.id
                if task[:PREFIX] != prefix:
                    prefix = task[:PREFIX]
                    batch, fresh = batches.get(prefix), []
                    if batch is not None:
                        updates.append((batch, fresh))
                if batch is None:
                    continue
                index = task[14] << 8 | task[15]
                if index < len(batch.ended) and batch.ended[index] is None:
                    batch.ended[index] = outcome.ended
                    batch.ended_count += 1
                    fresh.append(index)
            for known, _ in updates:
                if known.accepted and known.complete:
                    batches.pop(known.prefix, None)
        for known, fresh in updates:
            if fresh:
                known.notify(fresh)

    def fail(self, error: OncueError) -> None:
        """Let everyone who waits for an outcome raise `error`."""
        self.gone = error
        for batch in list(self.batches.values()):
            batch.wake_all()

    # ------------------------------------------------------------ requests

    def request(self, wanted: Sequence[bytes], wait_ms: int = 0, limited_s: float = LIMITED_S) -> list[Outcome]:
        """Return the outcomes of those of the tasks that have one.

        `wait_ms`: how long the server may wait for one. `limited_s`: see Http.request. Raises
        Unreachable, NotFound ...
        """
        headers = "Accept: application/msgpack\r\n"
        left, found = list(wanted), list[Outcome]()
        while True:
            body = _encode({"ids": left, "wait_ms": wait_ms})
            answer = self.http.request(
                "POST", "/v1/tasks/outcomes", body, kind=MSGPACK, headers=headers, repeat=True, limited_s=limited_s
            )
            part = _outcomes(answer.body)
            found += part
            if not part or b"oncue-more" not in answer.headers:  # the server returns some megabytes at once
                return found
            known = {outcome.id for outcome in part}
            left, wait_ms = [i for i in left if i not in known], 0

    def request_batch(self, batch: Batch[Any]) -> None:
        """Request the outcomes of a batch. On failure, the thread requests them later."""
        try:
            self.store(self.request(batch.open_ids()))
        except OncueError as e:
            log.debug("outcomes could not be requested: %s", e)

    def request_open(self, older_s: float) -> None:
        """Request outcomes of open tasks whose batch is older than `older_s`."""
        before = time.monotonic() - older_s
        wanted: list[bytes] = []
        for batch in list(self.batches.values()):
            if batch.accepted and batch.created_s <= before:
                wanted += batch.open_ids()
        for start in range(0, len(wanted), IDS_PER_REQUEST):
            self.store(self.request(wanted[start : start + IDS_PER_REQUEST]))

    # ------------------------------------------------------------ the thread

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="oncue-outcomes", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread's stream; join() waits for the thread.

        Closing the Http ends its other requests.
        """
        self._stop.set()
        if (connection := self._connection) is not None:
            connection.interrupt()

    def join(self, timeout_s: float) -> None:
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        since, pause = time.monotonic(), 0.02
        while not self._stop.is_set():
            try:
                connection, headers = self._connect()
            except (Broken, OncueError) as e:
                if isinstance(e, RateLimited) and self._request_instead():
                    since = time.monotonic()
                elif time.monotonic() - since > self.patience_s or _is_permanent(e):
                    self.fail(e if isinstance(e, OncueError) else self.http.unreachable(str(e)))
                self._stop.wait(pause)
                pause = min(pause * 2, 2.0)
                continue
            self._read(connection, headers)
            since, pause = time.monotonic(), 0.02
            self._stop.wait(pause)

    def _request_instead(self) -> bool:
        """Request all outcomes: the server opens no stream. False: that failed too."""
        self.connected.set()  # nobody needs to wait for the stream
        try:
            self.request_open(0.0)
        except (OncueError, msgspec.MsgspecError) as e:
            log.debug("outcomes could not be requested: %s", e)
            return False
        self.gone = None
        return True

    def _connect(self) -> tuple[Connection, dict[bytes, bytes]]:
        connection = self._connection = self.http.connect(SILENCE_S)
        try:
            connection.send("GET", f"/v1/outcomes?stream={self.stream}", None, "", "", 0)
            status, headers = connection.head()
            if status >= 400:
                raise problem(Answer(status, headers, b"".join(connection.parts(headers))))
        except BaseException:
            connection.close()
            raise
        return connection, headers

    def _read(self, connection: Connection, headers: dict[bytes, bytes]) -> None:
        """Store what the stream brings until it ends."""
        try:
            self.gone = None
            self.connected.set()
            self.request_open(0.0)
            for message in messages(connection, headers, self.request_open):
                self.store(_outcomes(message))
        except (Broken, OncueError, msgspec.MsgspecError) as e:
            log.debug("the outcome stream ended: %s", e)
        except Exception:
            log.exception("the outcome stream failed; it is opened again")
            self._stop.wait(1)
        finally:
            self._connection = None
            connection.close()


def _is_permanent(error: Exception) -> bool:
    """True for errors that waiting does not resolve, as an invalid token."""
    return isinstance(error, OncueError) and error.status in (401, 403, 404)


def messages(
    connection: Connection, headers: dict[bytes, bytes], check: Callable[[float], None]
) -> Iterator[bytes | memoryview]:
    """Yield the messages of an outcome stream.

    Each message is 4 bytes of length (big endian), then its bytes. Length 0 is a keep-alive.
    `check(seconds)` is called after each pause of CHECKS_S, to request overdue outcomes.
    """
    checks, due = iter(CHECKS_S), time.monotonic() + CHECKS_S[0]
    pause = next(checks)
    buffer = bytearray()
    for part in connection.parts(headers):
        if not buffer and len(part) >= 4 and int.from_bytes(part[:4], "big") == len(part) - 4 > 0:
            yield memoryview(part)[4:]
        else:
            buffer += part
            while len(buffer) >= 4 and len(buffer) >= (size := 4 + int.from_bytes(buffer[:4], "big")):
                if size > 4:
                    yield bytes(buffer[4:size])
                del buffer[:size]
        if time.monotonic() > due:
            check(pause)
            pause = next(checks, CHECKS_S[-1])
            due = time.monotonic() + pause
