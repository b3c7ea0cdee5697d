"""BatchSender: the thread that posts batches to the server.

    submit ──► the open batch of its call ──queue──► this thread ──POST /v1/tasks/batch──► server

While one request is under way, further calls gather in the next batch: a single task has no added
delay, and a loop of submits is sent in bulk. The client makes the batch's idempotency key, so a
repeated request (lost answer, restarted server) names the same tasks, and an outcome that arrives
before the answer finds its batch.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any, TypeVar

import msgspec

from oncue.client.batch import ACCEPTED, Batch
from oncue.client.deadline import FOREVER, Deadline
from oncue.client.http import Http, pause_after, register_function
from oncue.client.options import Options
from oncue.client.outcomes import MSGPACK, OutcomeReceiver
from oncue.client.unaccepted import AGAIN, UnacceptedBatches, rejection_of, summary
from oncue.errors import ClientClosed, NotReady, OncueError, RateLimited, Unreachable
from oncue.protocol.api import Accepted, BatchRequest, FunctionRequest, Me
from oncue.protocol.stated_options import resources_request

S = TypeVar("S")
log = logging.getLogger("oncue.client")
QUIET_CLOSE_S = 1.0  # close() logs that it waits only after this time
_encode = msgspec.msgpack.Encoder().encode


class BatchSender:
    """Collect calls into batches and post them, from one thread.

    The thread, and that of `outcomes`, start with the first call.
    `linger_s`: how long flush() and close() wait for a server that accepts nothing.
    """

    def __init__(self, http: Http, outcomes: OutcomeReceiver, linger_s: float) -> None:
        self.http, self.outcomes = http, outcomes
        self.linger_s = linger_s
        self.closed = False
        self._me: Me | None = None
        self.unregistered: dict[str, FunctionRequest] = {}  # by hash: packed while it was away
        self._reset()

    def _reset(self) -> None:
        """Make fresh state, of which a forked child shares nothing with its parent."""
        self.pid = os.getpid()
        self.trouble: OncueError | None = None  # why the current batch is not accepted yet
        self.unaccepted = UnacceptedBatches()
        self._lock = threading.Lock()  # of open batches and threads
        self._open: dict[tuple[str, Options], Batch[Any]] = {}
        self._queue: SimpleQueue[Batch[Any] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def me(self) -> Me:
        """Return the token's identity, cached. Raises Unreachable, Unauthorized."""
        if self._me is None:
            self._me = msgspec.json.decode(self.http.request("GET", "/v1/me").body, type=Me)
        return self._me

    @property
    def can_queue(self) -> bool:
        """True once the token's subject is known: task ids derive from it."""
        return self._me is not None

    # ------------------------------------------------------------ submit

    def submit(self, session: S, function: str, name: str, options: Options, payload: bytes) -> tuple[Batch[S], int]:
        """Queue one call. Raises Unreachable if the first one finds no server."""
        if self._thread is None or self.pid != os.getpid() or self.closed:
            self._start()
        key = (function, options)
        with self._lock:
            batch = self._open.get(key)
            if batch is None or batch.full:
                batch = self._new_batch(session, function, name, options)
                self._open[key] = batch
                index = batch.add(payload)
                self._queue.put(batch)
            else:
                index = batch.add(payload)
        return batch, index

    def submit_many(
        self, session: S, function: str, name: str, options: Options, payloads: Sequence[bytes]
    ) -> Batch[S]:
        """Queue calls as a batch of their own."""
        if self._thread is None or self.pid != os.getpid() or self.closed:
            self._start()
        with self._lock:
            batch = self._new_batch(session, function, name, options)
            batch.payloads = list(payloads)
            batch.ended = [None] * len(payloads)
            batch.sealed = True
            self._queue.put(batch)
        return batch

    def _new_batch(self, session: S, function: str, name: str, options: Options) -> Batch[S]:
        assert self._me is not None
        batch = Batch(session, self._me.subject, function, name, options)
        self.outcomes.add(batch)
        return batch

    def _start(self) -> None:
        if self.closed:
            raise ClientClosed("this client is closed: it cannot schedule new tasks", remedy="make a new Client()")
        if self.pid != os.getpid():
            self._reset()
            self.outcomes.reset()
            self.http.after_fork()
        self.me()
        with self._lock:
            if self._thread is None:
                self.outcomes.start()
                self._thread = threading.Thread(target=self._run, name="oncue-sender", daemon=True)
                self._thread.start()

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        self.outcomes.connected.wait(5)  # so that the first outcomes come by the stream
        while (batch := self._queue.get()) is not None:
            with self._lock:
                batch.sealed = True
                if self._open.get(key := (batch.function, batch.options)) is batch:
                    del self._open[key]
            try:
                self._post(batch)
            except OncueError as e:
                self._reject(batch, self._closed_too_early() if self._stop.is_set() else e)
            except Exception as e:
                log.exception("a batch could not be sent")
                self._reject(batch, OncueError(f"the batch could not be sent: {type(e).__name__}: {e}"))

    def _reject(self, batch: Batch[Any], error: OncueError) -> None:
        self.unaccepted.add(batch, error)
        self.outcomes.remove(batch)
        batch.reject(error)

    def _post(self, batch: Batch[Any]) -> None:
        """Post the batch until it is answered. Its key makes repeats harmless."""
        answer, repeated = self._post_until_answered(batch)
        accepted = msgspec.msgpack.decode(answer, type=Accepted)
        if int(accepted.first, 16) != batch.first:
            raise OncueError(
                f"the server counts the batch's ids from {accepted.first}, not from {batch.id(0).hex()}",
                remedy="client and server are of versions that do not fit; install the same",
            )
        batch.payloads = []
        self.outcomes.mark_accepted(batch)
        if repeated:  # the first request may have been done, and its outcomes sent to a dead stream
            self.outcomes.request_batch(batch)

    def _post_until_answered(self, batch: Batch[Any]) -> tuple[bytes, bool]:
        """Return the answer's body, and True if the request was sent more than once."""
        body = _encode(
            BatchRequest(
                function=batch.function,
                endpoint=batch.options.endpoint,
                key=batch.key.hex(),
                payloads=batch.payloads,
                retry=batch.options.policy(),
                timeout_ms=_ms(batch.options.timeout),
                expires_ms=_ms(batch.options.expires),
                stream=self.outcomes.stream,
                resources=resources_request(batch.options.resources),
                sandbox=batch.options.sandbox,
                outputs=list(batch.options.outputs),
                affinity=batch.options.affinity,
                priority=batch.options.priority,
            )
        )
        since, pause, repeated, self.trouble = time.monotonic(), 0.02, False, None
        while True:
            try:
                if self.unregistered:
                    self._register(batch.function)
                answer = self.http.request("POST", "/v1/tasks/batch", body, kind=MSGPACK, repeat=False, limited_s=0)
                break
            except (Unreachable, NotReady, RateLimited) as e:
                if self._stop.is_set():
                    raise
                self.trouble = e
                if time.monotonic() - since > self.outcomes.patience_s:
                    raise
                self._stop.wait(pause_after(e, pause))
                pause, repeated = min(pause * 2, 2.0), True
        self.trouble = None
        return answer.body, repeated

    def _register(self, function: str) -> None:
        """Register the function if that is still to be done. Repeats are harmless."""
        if (request := self.unregistered.get(function)) is not None:
            register_function(self.http, request)
            self.unregistered.pop(function, None)

    # ------------------------------------------------------------ flush and close

    def flush(self, timeout_s: float | None) -> None:
        """Wait until everything submitted so far is accepted.

        Wait at most `timeout_s`; None: as long as the server accepts something every `linger_s`.
        Raises the reason why a batch was not accepted.
        """
        if self.pid != os.getpid():
            return
        if not self._wait_accepted(Deadline(timeout_s), self.linger_s):
            waiting = self.outcomes.pending()
            why = self.trouble or Unreachable("the server has not answered in time")
            if waiting:
                raise summary([rejection_of(b, why) for b in waiting], given_up=False)
        if (error := self.unaccepted.drain()) is not None:
            raise error

    def _wait_accepted(self, limit: Deadline, linger_s: float) -> bool:
        """Wait for the current batches, in the order in which they are sent.

        False if some are neither accepted nor rejected yet.
        """
        if threading.current_thread() is self._thread:  # a callback: it would wait for itself
            return False
        for batch in self.outcomes.pending():
            turn = Deadline(linger_s if limit.seconds is None else limit.left())
            while not batch.ready(ACCEPTED):
                if turn.past:
                    return False
                batch.wait(ACCEPTED, turn.deadline)
        return True

    def close(self, flush: bool) -> None:
        """Flush, then end both threads. Idempotent.

        Raises as flush() does; with flush=False, unaccepted batches are not reported.
        """
        if self.closed:
            return
        self.closed = True
        if self.pid != os.getpid():
            self.http.close()
            return
        try:
            if flush and not self._wait_accepted(Deadline(min(QUIET_CLOSE_S, self.linger_s)), 0):
                log.warning(
                    "waiting for the server, which has %g s to accept something of what was submitted", self.linger_s
                )
                self._wait_accepted(FOREVER, self.linger_s)
        finally:
            self._end()
        if flush and (error := self.unaccepted.drain()) is not None:
            raise error

    def _end(self) -> None:
        self._stop.set()
        self._queue.put(None)
        self.outcomes.stop()
        self.http.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(5)
        self.outcomes.join(5)
        for batch in self.outcomes.pending():  # the thread hangs
            self._reject(batch, self._closed_too_early())
        self.outcomes.fail(ClientClosed("this client is closed", remedy="keep it open until the results are there"))

    def _closed_too_early(self) -> Unreachable:
        why = f"; {self.trouble.message}" if self.trouble is not None else ""
        return Unreachable(f"the client was closed before the server had accepted it{why}", remedy=AGAIN)


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
