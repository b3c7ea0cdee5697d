"""Tasks that an agent holds, from arrival until their results are spooled.

    accept ──► journal ──► queue ──assign──► RunTasks ──► on_results, requeue
                   └── set aside until the function's body, or large arguments, are here

This is the half of the agent's state machine that needs no connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from msgspec.structs import replace

from oncue.clocks.peer import PeerClock
from oncue.endpoint.agent import journal
from oncue.endpoint.agent.affinity_choice import AffinityChoice, Rooms, patience_us
from oncue.endpoint.agent.blob_arguments import BlobArguments
from oncue.endpoint.agent.effects import CancelRunning, Effect, LogLine, RunTasks
from oncue.endpoint.agent.fetcher import BlobCache, ContentFetcher, Download
from oncue.endpoint.agent.function_cache import FunctionCache
from oncue.endpoint.agent.known_nodes import KnownNodes
from oncue.endpoint.agent.outbox import Outbox, blobs_of_end
from oncue.endpoint.agent.prefetch import PrefetchLimit
from oncue.endpoint.agent.task_queue import COST_OF_TASK, AttemptGroup, TaskQueue
from oncue.endpoint.agent.unclaimed_tasks import CLAIM_US, ClaimedTasks, UnclaimedTasks
from oncue.endpoint.refusal import refused
from oncue.errors import Undecodable
from oncue.protocol import bridge
from oncue.protocol.codec import decode, encode
from oncue.protocol.payload import REF, ref_of
from oncue.protocol.records import CANCELLED, ERROR, EXPIRED, LOST, REFUSED, Call, Ended, Failure, TaskRecord
from oncue.protocol.run_options import NO_OPTIONS, RunOptions, affinity_of, merged

TOLERANCE_US = 500_000  # of expiries; a late message of the server lets tasks expire later, never earlier
EXPIRY_STEP_US = 1_000_000  # between two scans of the waiting tasks
OWN_CLOCK_US = 30_000_000  # from the start until tasks expire by the agent's own clock, without a server


class HeldTasks:
    """Held tasks and their way to the workers.

    Effects gather in `_out` until the next turn.
    """

    def __init__(
        self, journal: journal.Journal, cache: BlobCache, workers: int, now_us: int, *, adopts: bool = False
    ) -> None:
        """`adopts`: nodes may run tasks that an earlier process of this agent gave them."""
        self._journal, self._cache, self._adopts = journal, cache, adopts
        self.now_us = now_us
        self._out: list[Effect] = []
        self.stopping = False
        self.prefetch = PrefetchLimit(workers)
        self.queue = TaskQueue()
        self.outbox = Outbox(journal, cache, self._drop_blob_of_result)
        self._fetcher = ContentFetcher(cache, self._on_fetched, self._on_fetch_failed)
        self.functions = FunctionCache(cache)
        self._arguments = BlobArguments(cache)
        self._unclaimed = UnclaimedTasks(now_us + CLAIM_US)
        found = journal.recovered
        self.nodes = KnownNodes(journal, found.nodes, complete=found.nodes_complete, adopts=adopts)
        self._cancelling: set[bytes] = set()  # tasks at workers that are to be cancelled
        self._recalled: set[bytes] = set()  # tasks at workers that are to be given back
        self._given_back: set[bytes] = set()  # tasks whose results may say so
        #: Why tasks with these options can never run here; "" if they may. Set by the loop.
        self.misfit: Callable[[RunOptions], str] = lambda options: ""
        #: Workers that had an affinity key, with their room. Set by the loop.
        self.rooms_of: Callable[[str], Rooms] = lambda key: ()
        self.running = 0
        self._expiry_us = self._expired_us = 0  # next expiry (0: none), last scan
        #: Expiries are times of the server's clock.
        self.server_clock = PeerClock(TOLERANCE_US)
        self._began_us = now_us
        self.other_records: Callable[[], list[bytes]] = list  # of blocks, for a rewrite of the journal
        #: Returns True if tasks of a call may start now: a worker remains for long enough.
        self.admission: Callable[[Call], bool] | None = None
        #: Returns True if each task of a call is a chunk of its own.
        self.alone: Callable[[Call], bool] | None = None
        self._recover()

    def _log(self, text: str) -> None:
        self._out.append(LogLine(text))

    # ------------------------------------------------------------ after a start

    def _recover(self) -> None:
        """Restore the state before the restart.

        Queued tasks continue. Tasks that had started and not ended are lost, unless a node may run
        them still: then they wait to be claimed. The outbox restores results itself.
        """
        found = self._journal.recovered
        for problem in found.problems:
            self._log(f"the journal was damaged: {problem}")
        why = encode(Failure("oncue.TaskLost", "the agent was killed while it ran"))
        for held in found.held:
            size = sum(len(t.args) + COST_OF_TASK for t in held.tasks)
            group = AttemptGroup(held.call, decode(Call, held.call), held.attempt, held.accepted_us, held.tasks, size)
            self.queue.add(group)
            started = [t for t in held.tasks if t.id in held.started]
            if self._adopts:
                self._unclaimed.add(group, started)
                self.running += len(started)
            elif started:
                self._end(group, started, LOST, why)
            self._enqueue(group, [t for t in held.tasks if t.id not in held.started])
        used = self._arguments.users.keys() | self.outbox.uploads.keys()
        for sha in self._cache.blobs():
            if self._adopts:  # a node may have sent it, and names it in a result once it is back
                self._arguments.mark_unneeded(sha, self._unclaimed.until_us)
            elif sha not in used:
                self._cache.drop_blob(sha)
        found.held, found.uploading, found.spooled = [], [], []  # not needed any more

    # ------------------------------------------------------------ functions and arguments

    def _accept(self, message: bridge.Dispatch, tasks: list[TaskRecord], body: bytes) -> None:
        call = decode(Call, message.call)
        group = AttemptGroup(
            message.call, call, message.attempt, message.accepted_us, tasks, len(body) + COST_OF_TASK * len(tasks)
        )
        if self._given_back and (again := self._given_back.intersection([t.id for t in tasks])):
            # Sent again, they would be taken for ends of these.
            self.outbox.withdraw_recalled(again)
            self._given_back -= again
        self._journal.received(message.call, message.attempt, message.accepted_us, body)
        self.queue.add(group)
        self._enqueue(group, tasks)

    def _enqueue(self, group: AttemptGroup, tasks: list[TaskRecord]) -> None:
        """Queue tasks, or set them aside until body and large argument are here."""
        if self._refuse(group, tasks):
            return
        for t in tasks:
            if t.args[:1] == REF:
                tasks = [t for t in tasks if not self._needs_blob(group, t)]
                break
        self._note_expiry(group.call.expires_us)
        if tasks:
            function = group.call.function
            here = self.functions.get(function) is not None
            self.queue.enqueue(group, tasks, here=here)
            if not here:
                self._fetcher.start(function, blob=False)

    def _refuse(self, group: AttemptGroup, tasks: list[TaskRecord]) -> bool:
        """End tasks that can never run here. Return True if they are such."""
        options = merged(group.call.run, self.functions.options(group.call.function))
        if options is NO_OPTIONS or not (why := self.misfit(options)):
            return False
        self._end(group, tasks, REFUSED, encode(refused(why)))
        return True

    def _needs_blob(self, group: AttemptGroup, task: TaskRecord) -> bool:
        if task.args[:1] != REF:
            return False
        try:
            ref = ref_of(task.args)
        except Undecodable as e:
            self._end(group, [task], ERROR, encode(Failure("oncue.Undecodable", e.message)))
            return True
        if ref is None:
            return False
        missing = self._arguments.require(group, task, tuple(blob.sha256 for blob in ref.blobs))
        for sha256 in missing:
            self._fetcher.start(sha256, blob=True)
        return bool(missing)

    def _on_fetched(self, fetch: Download, body: bytes) -> None:
        if not fetch.blob:
            try:
                self.functions.store(fetch.sha256, body)
            except OSError as e:
                self._log(f"a function could not be kept on disk: {e.strerror or e}")
            if self.functions.options(fetch.sha256) is not None:
                for group, tasks in self.queue.pop_without_function(fetch.sha256):
                    if not self._refuse(group, tasks):
                        self.queue.enqueue(group, tasks, here=False)
            self.queue.on_function(fetch.sha256)
            return
        for group, task in self._arguments.on_fetched(fetch.sha256):
            here = self.functions.get(group.call.function) is not None
            self.queue.enqueue(group, [task], here=here)
            if not here:
                self._fetcher.start(group.call.function, blob=False)

    def _on_fetch_failed(self, fetch: Download, why: str) -> None:
        if fetch.blob:
            failure = encode(Failure("oncue.BlobMissing", f"its large arguments could not be fetched: {why}"))
            waited, idle = self._arguments.on_failed(fetch.sha256)
            for group, task in waited:
                self._end(group, [task], ERROR, failure)
            for sha256 in idle:
                self._fetcher.stop(sha256)
            return
        remedy = "register the function again, and run the task anew"
        failure = encode(Failure("oncue.FunctionError", f"the function could not be fetched: {why}", "", remedy))
        for group, tasks in self.queue.pop_without_function(fetch.sha256):
            self._end(group, tasks, ERROR, failure)

    def _assign(self, room: int, chunk_size: Callable[[str], int]) -> None:
        choice: AffinityChoice | None = None
        queue, passed = self.queue, 0  # functions in a row whose tasks may not start now
        queue.begin_turn()
        while room > 0 and not self.stopping:
            function = queue.next_function()
            if function is None:
                return
            if self.admission is not None and not self.admission(queue.next_call(function)):
                passed += 1
                if passed >= queue.functions:
                    queue.pass_priority()
                    passed = 0
                else:
                    queue.pass_over(function)
                continue
            passed = 0
            body = self.functions.get(function)
            if body is None:  # its file is gone: fetch it again
                for group, tasks in [queue.dequeue(function, 1 << 30)]:
                    queue.enqueue(group, tasks, here=False)
                self._fetcher.start(function, blob=False)
                continue
            index = 0
            if affinity_of(queue.next_call(function).run):
                choice = choice or AffinityChoice(self.rooms_of, patience_us(self.prefetch.task_us), self.now_us)
                index = choice.index(queue.slices(function), self.admission)
            most = max(1, min(chunk_size(function), -(-queue.queued // max(1, room))))
            if self.alone is not None and self.alone(queue.next_call(function, index)):
                most = 1
            group, tasks = queue.dequeue(function, most, index)
            if group.call.expires_us and self._server_us() > group.call.expires_us:
                why = encode(Failure("oncue.TaskExpired", "the task did not start before its expiry"))
                self._end(group, tasks, EXPIRED, why)
                continue
            self._journal.started(group.attempt, b"".join([t.id for t in tasks]))
            self.running += len(tasks)
            self._out.append(RunTasks(function, body, group.call.timeout_ms, group.attempt, tasks, group.call.run))
            room -= 1

    # ------------------------------------------------------------ results of the workers

    def on_results(self, ends: Sequence[Ended]) -> None:
        """Accept the results of attempts that ended at the workers, a chunk or more."""
        if not ends:
            return
        if self._recalled:
            ends = self._as_recalled(ends)
        took = ends[-1].ended_us - ends[0].started_us if ends[0].started_us else 0
        if took >= 0 and ends[0].started_us:
            self.prefetch.measured(len(ends), took)
        queue = self.queue
        current: AttemptGroup | None = None
        finished: list[Ended] = []
        for e in ends:
            group = queue.finish(e.id)
            if group is None:
                self._give_up(e)  # a duplicate
                continue
            self.running -= 1
            if group is not current:
                if finished and current is not None:
                    self.outbox.add((current.call_raw, current.accepted_us), finished)
                current, finished = group, []
            finished.append(e)
        if finished and current is not None:
            self.outbox.add((current.call_raw, current.accepted_us), finished)
        self._arguments.release((e.id for e in ends), self.now_us)
        if self._cancelling:
            self._cancelling.difference_update([e.id for e in ends])

    def _as_recalled(self, ends: Sequence[Ended]) -> list[Ended]:
        """Return the ends, with those of tasks that are given back marked so."""
        here = [e.status == CANCELLED and e.id in self._recalled for e in ends]
        self._recalled.difference_update([e.id for e in ends])
        for e, back in zip(ends, here, strict=True):
            if back:
                self._give_up(e)
        return [replace(e, value=bridge.RECALLED) if back else e for e, back in zip(ends, here, strict=True)]

    def requeue(self, tasks: Iterable[TaskRecord]) -> None:
        """Queue tasks again that did not start; no attempt is charged."""
        by_group: dict[int, tuple[AttemptGroup, list[TaskRecord]]] = {}
        for t in tasks:
            group = self.queue.held.get(t.id)
            if group is not None:
                by_group.setdefault(id(group), (group, []))[1].append(t)
        for group, given in by_group.values():
            self.running -= len(given)
            self._journal.requeued(group.attempt, b"".join([t.id for t in given]))
            here = self.functions.get(group.call.function) is not None
            self.queue.enqueue(group, given, here=here, first=True)
            self._note_expiry(group.call.expires_us)
            if not here:
                self._fetcher.start(group.call.function, blob=False)
        if self._cancelling:
            self._end_waiting(self._cancelling, CANCELLED, encode(Failure("oncue.TaskCancelled", "cancelled")))
        if self._recalled:
            self._end_waiting(self._recalled, CANCELLED, bridge.RECALLED)

    # ------------------------------------------------------------ tasks of before the restart

    def claim(self, held: Iterable[tuple[bytes, int]]) -> list[ClaimedTasks]:
        """Return those of these (id, attempt) that a node may go on with, after a restart."""
        claimed = self._unclaimed.claim(held)
        for c in claimed:
            self.functions.get(c.function)  # reads from the disk what it states
        cancelled = frozenset(t.id for c in claimed for t in c.tasks if t.id in self._cancelling)
        if cancelled:
            self._out.append(CancelRunning(cancelled))
        return claimed

    def lose_unclaimed(self, why: str) -> None:
        """End the tasks that no node has claimed as lost."""
        failure = encode(Failure("oncue.TaskLost", f"the agent was restarted, and {why}"))
        for group, tasks in self._unclaimed.drain():
            self.running -= len(tasks)
            self._end(group, tasks, LOST, failure)

    # ------------------------------------------------------------ cancel and ends without a worker

    def cancel(self, ids: set[bytes], why: str = "") -> None:
        """Cancel tasks: waiting ones end at once, running ones are ended by the pool."""
        self._end_waiting(ids, CANCELLED, encode(Failure("oncue.TaskCancelled", why or "cancelled")))
        running = frozenset(i for i in ids if i in self.queue.held)
        if running:
            self._cancelling |= running
            self._out.append(CancelRunning(running))

    def recall(self, ids: set[bytes], running: bool) -> None:
        """Give back those tasks that wait for a worker; if `running`, all."""
        if not self.outbox.spool and not self.outbox.gathered:  # whoever sent them knows all ends
            self._given_back = set(self._recalled)
        for group, task in self.queue.remove(ids):
            self._end(group, [task], CANCELLED, bridge.RECALLED)
            ids.discard(task.id)
            self._given_back.add(task.id)
        if running:
            self._given_back |= ids
            self._end_waiting(ids, CANCELLED, bridge.RECALLED)
            self._recalled.update(i for i in ids if i in self.queue.held)
            self._out.append(CancelRunning(frozenset(self._recalled)))

    def _end_waiting(self, ids: set[bytes], status: int, failure: bytes) -> None:
        """End those tasks that wait, and remove them from `ids`."""
        for group, task in self.queue.remove(ids):
            ids.discard(task.id)
            self._end(group, [task], status, failure)
        waited, idle = self._arguments.remove(ids)
        for group, task in waited:
            ids.discard(task.id)
            self._end(group, [task], status, failure)
        for sha256 in idle:
            self._fetcher.stop(sha256)

    def _note_expiry(self, at_us: int) -> None:
        if at_us:
            self._expiry_us = min(self._expiry_us or at_us, at_us)

    def _server_us(self) -> int:
        """Return the server's time; 0 if it is not known soon after the start.

        By then an agent whose clock is wrong would end what has not expired.
        """
        clock = self.server_clock
        if not clock.known and self.now_us - self._began_us < OWN_CLOCK_US:
            return 0
        return self.now_us + clock.ahead_us

    def _expiry_due_us(self) -> int:
        due = self._expiry_us + 1 - self.server_clock.ahead_us
        if not self.server_clock.known:
            due = max(due, self._began_us + OWN_CLOCK_US)
        return max(due, self._expired_us + EXPIRY_STEP_US)

    def _expire(self) -> None:
        """End waiting tasks past their expiry, even if no worker is free."""
        if not self._expiry_us or self.now_us < self._expiry_due_us():
            return
        self._expired_us = self.now_us
        at = self._server_us()
        due, self._expiry_us = self.queue.expired(at)
        more, following = self._arguments.expired(at)
        due |= more
        self._note_expiry(following)
        if due:
            self._end_waiting(
                due, EXPIRED, encode(Failure("oncue.TaskExpired", "the task did not start before its expiry"))
            )

    def _end(self, group: AttemptGroup, tasks: list[TaskRecord], status: int, failure: bytes) -> None:
        """End attempts without a worker."""
        for t in tasks:
            self.queue.finish(t.id)
        ends = [
            Ended(t.id, group.attempt, status, 0, self.now_us, failure, b"", t.event, t.retry_of, t.mark_us)
            for t in tasks
        ]
        self.outbox.add((group.call_raw, group.accepted_us), ends)
        self._arguments.release((t.id for t in tasks), self.now_us)

    def _give_up(self, ended: Ended) -> None:
        """Let the blobs go of an outcome that nobody needs."""
        for blob in blobs_of_end(ended):
            self._drop_blob_of_result(blob.sha256)

    def drop_given_up(self, blobs: Iterable[str]) -> None:
        """Let those of these old blobs go that no task needs."""
        for sha256 in blobs:
            if sha256 not in self._arguments.users and sha256 not in self.outbox.uploads:
                self._drop_blob_of_result(sha256)

    def _drop_blob_of_result(self, sha256: str) -> None:
        self._arguments.mark_unneeded(sha256, self.now_us)

    # ------------------------------------------------------------ for the journal

    @property
    def journalled(self) -> bool:
        """True if the journal has all results that came from the workers."""
        return not self.outbox.gathered and not self._journal.unwritten

    @property
    def live_bytes(self) -> int:
        return self.queue.live_bytes + self.outbox.bytes

    def _all_records(self, epoch: int) -> list[bytes]:
        """Return the records of a new journal: everything that must survive."""
        waiting = self.queue.waiting()
        waiting |= self._arguments.waiting()
        held, records = self.queue.held, [journal.pack(journal.EPOCH, epoch.to_bytes(8, "big"))]
        records += self.other_records()
        records += [journal.pack_node(key, known=True) for key in self.nodes.known()]
        if self.nodes.complete:
            records.append(journal.pack_node(journal.NO_NODE, known=True))
        for g in self.queue.groups():
            tasks = [t for t in g.tasks if held.get(t.id) is g]
            records.append(journal.pack(journal.RECEIVED, encode((g.call_raw, g.attempt, g.accepted_us, tasks))))
            started = b"".join([t.id for t in tasks if t.id not in waiting])
            if started:
                records.append(journal.pack(journal.STARTED, encode((g.attempt, started))))
        for spooled, frame in self.outbox.journal_frames():
            records.append(journal.pack(journal.ENDED if spooled else journal.UPLOADING, encode(frame)))
        records.append(journal.pack(journal.ACKED, encode((self.outbox.acked_seq,))))
        return records
