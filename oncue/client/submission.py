"""Takes batches to the server and brings outcomes back: two threads a client, started with its first task.

    submit ──► the open batch of its call ──queue──► sender thread ──POST /v1/tasks/batch──► server
    handles ◄── Batch.ended ◄── outcome thread ◄──GET /v1/outcomes?stream=… ─────────────── server

While one request is under way, what is submitted gathers in the next batch: a single task has no added delay, and a loop
of them travels in bulk. A batch's key is minted here, so a request sent again (lost answer, restarted server) names the
same tasks, and an outcome that overtakes the answer finds its batch. After each connect of the stream the outcomes of all
open batches are asked for, since they may have been told to a stream that nobody read.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING

import msgspec

from oncue.client.batch import ACCEPTED, PREFIX, Batch, Options, Outcome
from oncue.client.deadline import FOREVER, Deadline
from oncue.client.http import Answer, Broken, Connection, Http, problem
from oncue.client.outcome_stream import messages
from oncue.client.unaccepted import AGAIN, UnacceptedBatches, refusal, summary
from oncue.errors import Invalid, NotReady, OncueError, RateLimited, Unreachable
from oncue.protocol.api import Accepted, BatchRequest, FunctionRequest, Me

if TYPE_CHECKING:
    from oncue.client.client import Client

log = logging.getLogger("oncue.client")
MSGPACK = "application/msgpack"
SILENCE_S = 60.0  # a stream without even a sign of life for so long is dead
ASK_IDS = 16_384  # in one request
SILENT_S = 1.0  # the end waits for so long without saying so
_encode = msgspec.msgpack.Encoder().encode
_outcomes = msgspec.msgpack.Decoder(list[Outcome]).decode


class Courier:
    """See the module. `patience_s`: how long a server may be away before those who wait are told; `linger_s`: how long the
    end waits for a server that takes nothing."""

    def __init__(self, http: Http, patience_s: float, linger_s: float) -> None:
        self.http = http
        self.patience_s, self.linger_s = patience_s, linger_s
        self.closed = False
        self._me: Me | None = None
        self.unregistered: dict[str, FunctionRequest] = {}  # by hash: given while the server was away
        self._fresh()

    def _fresh(self) -> None:
        """Everything that a forked child must not share with its parent."""
        self.pid = os.getpid()
        self.gone: OncueError | None = None  # why nothing will come for now; those who wait raise it
        self.trouble: OncueError | None = None  # why the server does not take the batch that is its turn
        self.batches: dict[bytes, Batch] = {}
        self.untold = UnacceptedBatches()
        self._stream = uuid.uuid4().hex
        self._lock = threading.Lock()  # open batches, threads
        self._store_lock = threading.Lock()
        self._open: dict[tuple[str, Options], Batch] = {}
        self._queue: SimpleQueue[Batch | None] = SimpleQueue()
        self._sender: threading.Thread | None = None
        self._reader: threading.Thread | None = None
        self._connection: Connection | None = None
        self._connected = threading.Event()
        self._stop = threading.Event()

    def me(self) -> Me:
        """Who the token is. Asked once. Raises Unreachable, Unauthorized."""
        if self._me is None:
            self._me = msgspec.json.decode(self.http.request("GET", "/v1/me").body, type=Me)
        return self._me

    @property
    def met(self) -> bool:
        """Whether the server has said whose tasks these are, so that calls can be queued without it."""
        return self._me is not None

    # ------------------------------------------------------------ out

    def submit(self, client: Client, function: str, name: str, options: Options, payload: bytes) -> tuple[Batch, int]:
        """Queue one call. Raises Unreachable when there is no server at the first one."""
        if self._sender is None or self.pid != os.getpid() or self.closed:
            self._start()
        key = (function, options)
        with self._lock:
            batch = self._open.get(key)
            if batch is None or batch.full:
                batch = self._new(client, function, name, options)
                self._open[key] = batch
                index = batch.add(payload)
                self._queue.put(batch)
            else:
                index = batch.add(payload)
        return batch, index

    def submit_many(
        self, client: Client, function: str, name: str, options: Options, payloads: Sequence[bytes]
    ) -> Batch:
        """Queue a batch of its own."""
        if self._sender is None or self.pid != os.getpid() or self.closed:
            self._start()
        with self._lock:
            batch = self._new(client, function, name, options)
            batch.payloads = list(payloads)
            batch.ended = [None] * len(payloads)
            batch.sealed = True
            self._queue.put(batch)
        return batch

    def _new(self, client: Client, function: str, name: str, options: Options) -> Batch:
        assert self._me is not None
        batch = Batch(client, self._me.subject, function, name, options)
        self.batches[batch.prefix] = batch
        return batch

    def _start(self) -> None:
        if self.closed:
            raise Invalid("this client is closed", remedy="make a new Client()")
        if self.pid != os.getpid():
            self._fresh()
            self.http.after_fork()
        self.me()
        with self._lock:
            if self._sender is None:
                self._reader = threading.Thread(target=self._read, name="oncue-outcomes", daemon=True)
                self._sender = threading.Thread(target=self._send, name="oncue-sender", daemon=True)
                self._reader.start()
                self._sender.start()

    def _send(self) -> None:
        self._connected.wait(5)  # so that the first outcomes have a stream to come by
        while (batch := self._queue.get()) is not None:
            with self._lock:
                batch.sealed = True
                if self._open.get(key := (batch.function, batch.options)) is batch:
                    del self._open[key]
            try:
                self._post(batch)
            except OncueError as e:
                self._refuse(batch, self._too_late() if self._stop.is_set() else e)
            except Exception as e:
                log.exception("a batch could not be sent")
                self._refuse(batch, OncueError(f"the batch could not be sent: {type(e).__name__}: {e}"))

    def _refuse(self, batch: Batch, error: OncueError) -> None:
        self.untold.add(batch, error)
        self.batches.pop(batch.prefix, None)
        batch.refused(error)

    def _post(self, batch: Batch) -> None:
        """Until it is answered. The same key again is the same tasks, so a lost answer does no harm."""
        o = batch.options
        body = _encode(
            BatchRequest(
                function=batch.function,
                endpoint=o.endpoint,
                key=batch.key.hex(),
                payloads=batch.payloads,
                retry=o.policy(),
                timeout_ms=_ms(o.timeout),
                expires_ms=_ms(o.expires),
                stream=self._stream,
            )
        )
        since, pause, again, self.trouble = time.monotonic(), 0.02, False, None
        while True:
            try:
                if self.unregistered:
                    self._register(batch.function)
                answer = self.http.request("POST", "/v1/tasks/batch", body, kind=MSGPACK, repeat=False)
                break
            except (Unreachable, NotReady, RateLimited) as e:
                if self._stop.is_set():
                    raise
                self.trouble = e
                if time.monotonic() - since > self.patience_s:
                    raise
                self._stop.wait(_after(e, pause))
                pause, again = min(pause * 2, 2.0), True
        self.trouble = None
        accepted = msgspec.msgpack.decode(answer.body, type=Accepted)
        if int(accepted.first, 16) != batch.first:
            raise OncueError(
                f"the server counts the batch's ids from {accepted.first}, not from {batch.id(0).hex()}",
                remedy="client and server are of versions that do not fit; install the same",
            )
        batch.payloads = []
        with self._store_lock:
            if batch.closed == len(batch.ended):  # all its outcomes overtook the answer
                self.batches.pop(batch.prefix, None)
            batch.accepted = True  # last: who sees it may rely on the rest
        batch.wake(ACCEPTED)
        if again:  # a first request may have been done, and its outcomes told to a stream that is dead
            self.ask_batch(batch)

    def _register(self, function: str) -> None:
        """By content: again is harmless."""
        if (request := self.unregistered.get(function)) is not None:
            self.http.request("POST", "/v1/functions", msgspec.json.encode(request), repeat=True)
            self.unregistered.pop(function, None)

    # ------------------------------------------------------------ in

    def store(self, outcomes: Sequence[Outcome]) -> None:
        """Outcomes, from the stream or asked for; doubles and strangers are dropped."""
        batches = self.batches
        told: list[tuple[Batch, list[int]]] = []
        with self._store_lock:
            prefix = b""
            batch: Batch | None = None
            fresh: list[int] = []
            for outcome in outcomes:
                task = outcome.id
                if task[:PREFIX] != prefix:
                    prefix = task[:PREFIX]
                    batch, fresh = batches.get(prefix), []
                    if batch is not None:
                        told.append((batch, fresh))
                if batch is None:
                    continue
                index = task[14] << 8 | task[15]
                if index < len(batch.ended) and batch.ended[index] is None:
                    batch.ended[index] = outcome.ended
                    batch.closed += 1
                    fresh.append(index)
            for known, _ in told:
                if known.accepted and known.closed == len(known.ended):
                    batches.pop(known.prefix, None)
        for known, fresh in told:
            if fresh:
                known.told(fresh)

    def _read(self) -> None:
        since, pause = time.monotonic(), 0.02
        while not self._stop.is_set():
            try:
                connection, headers = self._dial()
            except (Broken, OncueError) as e:
                if time.monotonic() - since > self.patience_s or _final(e):
                    self._tell(e if isinstance(e, OncueError) else self.http.unreachable(str(e)))
                self._stop.wait(pause)
                pause = min(pause * 2, 2.0)
                continue
            try:
                self.gone = None
                self._connected.set()
                self.ask_open(0.0)
                for message in messages(connection, headers, self.ask_open):
                    self.store(_outcomes(message))
            except (Broken, OncueError, msgspec.MsgspecError) as e:
                log.debug("the outcome stream ended: %s", e)
            except Exception:
                log.exception("the outcome stream failed; it is opened again")
                self._stop.wait(1)
            finally:
                self._connection = None
                connection.close()
            since, pause = time.monotonic(), 0.02
            self._stop.wait(pause)

    def _dial(self) -> tuple[Connection, dict[bytes, bytes]]:
        connection = self._connection = self.http.connect(SILENCE_S)
        try:
            connection.send("GET", f"/v1/outcomes?stream={self._stream}", None, "", "", 0)
            status, headers = connection.head()
            if status >= 400:
                raise problem(Answer(status, headers, b"".join(connection.parts(headers))))
        except BaseException:
            connection.close()
            raise
        return connection, headers

    def _tell(self, error: OncueError) -> None:
        self.gone = error
        for batch in list(self.batches.values()):
            batch.wake_all()

    def ask_open(self, older_s: float) -> None:
        """Ask how the accepted tasks ended that are open here and whose batch is older than so many seconds."""
        before = time.monotonic() - older_s
        wanted: list[bytes] = []
        for batch in list(self.batches.values()):
            if batch.accepted and batch.made_s <= before:
                wanted += [batch.id(i) for i, ended in enumerate(batch.ended) if ended is None]
        for start in range(0, len(wanted), ASK_IDS):
            self.store(self.ask(wanted[start : start + ASK_IDS]))

    def ask_batch(self, batch: Batch) -> None:
        """What is closed of this batch. A server that does not answer now is asked again by the outcome thread."""
        try:
            self.store(self.ask([batch.id(i) for i, ended in enumerate(batch.ended) if ended is None]))
        except OncueError as e:
            log.debug("outcomes could not be asked for: %s", e)

    def ask(self, wanted: Sequence[bytes], wait_ms: int = 0) -> list[Outcome]:
        """The outcomes of those tasks that are closed. Raises Unreachable, NotFound ..."""
        body = _encode({"ids": list(wanted), "wait_ms": wait_ms})
        headers = "Accept: application/msgpack\r\n"
        answer = self.http.request("POST", "/v1/tasks/outcomes", body, kind=MSGPACK, headers=headers, repeat=True)
        return _outcomes(answer.body)

    # ------------------------------------------------------------ the end

    def flush(self, timeout_s: float | None) -> None:
        """Wait until what was submitted before is accepted: `timeout_s` at most; None: as long as the server takes
        something every `linger_s`. Raises what kept a batch from being accepted."""
        if self.pid != os.getpid():
            return
        if not self._accepted(Deadline(timeout_s), self.linger_s):
            waiting = [b for b in list(self.batches.values()) if not b.accepted and b.error is None]
            why = self.trouble or Unreachable("the server has not answered in time")
            if waiting:
                raise summary([refusal(b, why) for b in waiting], given_up=False)
        if (error := self.untold.take()) is not None:
            raise error

    def _accepted(self, limit: Deadline, linger_s: float) -> bool:
        """Wait for the batches of now, in the order in which they are sent. False: not all of them are accepted or
        refused."""
        if threading.current_thread() is self._sender:  # a callback: it would wait for itself
            return False
        for batch in [b for b in list(self.batches.values()) if not b.accepted]:
            turn = Deadline(linger_s if limit.seconds is None else limit.left())
            while not batch.ready(ACCEPTED):
                if turn.past:
                    return False
                batch.wait(ACCEPTED, turn.deadline)
        return True

    def close(self, flush: bool) -> None:
        """Wait until what was submitted is accepted (as `flush`), then end the threads. Idempotent. Raises what kept a
        batch from being accepted; who does not wait has given that up."""
        if self.closed:
            return
        self.closed = True
        if self.pid != os.getpid():
            self.http.close()
            return
        try:
            if flush and not self._accepted(Deadline(min(SILENT_S, self.linger_s)), 0):
                log.warning(
                    "waiting for the server, which has %g s to accept something of what was submitted", self.linger_s
                )
                self._accepted(FOREVER, self.linger_s)
        finally:
            self._end()
        if flush and (error := self.untold.take()) is not None:
            raise error

    def _end(self) -> None:
        me = threading.current_thread()
        self._stop.set()
        self._queue.put(None)
        self.http.close()
        if (connection := self._connection) is not None:
            connection.interrupt()
        for thread in (self._sender, self._reader):
            if thread is not None and thread is not me:
                thread.join(5)
        for batch in [b for b in list(self.batches.values()) if not b.accepted and b.error is None]:
            self._refuse(batch, self._too_late())  # the sender hangs
        self._tell(Invalid("this client is closed", remedy="keep it open until the results are there"))

    def _too_late(self) -> Unreachable:
        why = f"; {self.trouble.message}" if self.trouble is not None else ""
        return Unreachable(f"the client was closed before the server had accepted it{why}", remedy=AGAIN)


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def _after(error: OncueError, pause: float) -> float:
    """Retry-After, where the server says it."""
    try:
        return max(pause, min(30.0, float(error.details.get("retry_after_s", pause))))
    except (TypeError, ValueError):
        return pause


def _final(error: Exception) -> bool:
    """Waiting does not mend it: a bad token, no right ..."""
    return isinstance(error, OncueError) and error.status in (401, 403, 404)
