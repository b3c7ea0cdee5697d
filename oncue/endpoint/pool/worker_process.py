"""One worker process, as its pool drives it. Nothing here blocks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict, deque
from operator import attrgetter
from pathlib import Path

from oncue.disk.private_files import inherited_umask
from oncue.endpoint.pool.launch import WorkerLaunch
from oncue.endpoint.pool.live_output import LiveOutput
from oncue.endpoint.pool.memory_watch import MemoryWatch
from oncue.endpoint.pool.protocol import FrameReader, FromWorker, LoadFunction, TaskChunk, pack
from oncue.endpoint.pool.shared_progress import CHUNK, CHUNK_STEP, FIRST, NEVER, STOP, SharedProgress, position
from oncue.functions.body import FunctionProperties
from oncue.processes.children import descendants_of, kill_all
from oncue.protocol.records import Ended, TaskRecord
from oncue.protocol.run_options import RunOptions

PIPE_BYTES = 1 << 20
READ_BYTES = 1 << 20
_id = attrgetter("id")
_LOOKS = 20  # for fresh children of one that is killed
FUNCTIONS = 256  # kept loaded in one worker
KEYS = 1_000  # affinity keys remembered of one worker


class ChunkInFlight:
    """A chunk at a worker."""

    __slots__ = (
        "attempt",
        "cancelled",
        "done",
        "end",
        "function",
        "n",
        "numbers",
        "properties",
        "received",
        "tasks",
        "timeout_us",
        "used_bytes",
    )

    def __init__(
        self,
        n: int,
        function: str,
        properties: FunctionProperties,
        attempt: int,
        timeout_ms: int,
        tasks: list[TaskRecord],
        numbers: tuple[int, ...] = (),
    ) -> None:
        self.properties, self.numbers = properties, numbers  # of the workers whose room it takes
        self.used_bytes = 0  # memory, if that is more than the function may use
        self.n, self.function, self.attempt, self.tasks = n, function, attempt, tasks
        self.timeout_us = timeout_ms * 1000
        self.done = 0  # tasks whose end was reported, from the pipe or shared memory
        self.received = 0  # tasks whose end came through the pipe
        self.end = len(tasks)  # tasks from here on were requeued
        self.cancelled: set[bytes] = set()  # ended instead of requeued

    def has(self, first: int, ended: list[Ended]) -> bool:
        """Return True if these results are of its tasks from index `first` on."""
        return list(map(_id, ended)) == list(map(_id, self.tasks[first : first + len(ended)]))


class WorkerProcess:
    """A worker process and the chunks that it holds.

    Raises OSError if it cannot be started.
    """

    def __init__(
        self, name: str, number: int, launch: WorkerLaunch, now_us: int, numbers: tuple[int, ...] = ()
    ) -> None:
        self.name, self.number = name, number
        self.numbers = numbers or (number,)  # to whose cores and GPUs it is pinned
        self.ready = False
        self.spawned_us = now_us
        self.chunks: deque[ChunkInFlight] = deque()
        self.functions: OrderedDict[str, None] = OrderedDict()
        #: Affinity keys that it had, and when last (unix µs), the newest last.
        self.keys: OrderedDict[str, int] = OrderedDict()
        self.count = 0  # chunks sent
        self.stop: int | None = None  # asked to stop before this place
        self.stop_us = 0
        #: Why it was made to end: timeout, cancel, memory, close; pipe: it was closed; channel: out
        #: of step; stuck: it did not begin its chunk.
        self.ending = ""
        self.target = b""  # the task because of which
        self.term_us = 0
        self.retired_us = 0  # asked to end once it has nothing to do
        self._was_detached = False
        self.succeeded = False  # its successor runs already
        self.pipe_closed_us = 0  # its pipe ended
        self.moved_s = time.monotonic()  # when it was last seen to move, or got work while idle
        self._frames, self._out = FrameReader(), bytearray()
        self._spawn(launch)
        self.live_output = LiveOutput(self.capture)  # by the task that runs
        self._memory = MemoryWatch(self.process.pid)

    def _spawn(self, launch: WorkerLaunch) -> None:
        folder = launch.folder
        folder.mkdir(parents=True, exist_ok=True)  # a task may have removed it
        mark, self.capture = _scratch(folder, "oncue-board"), _scratch(folder, "oncue-output")
        fcntl.fcntl(self.capture, fcntl.F_SETFL, fcntl.fcntl(self.capture, fcntl.F_GETFL) | os.O_APPEND)
        child_in, self.fd_in = os.pipe()
        self.fd_out, child_out = os.pipe()
        try:
            self.progress = SharedProgress.fresh(mark)
            self.process = subprocess.Popen(
                launch.command_line((child_in, child_out, mark)),
                stdin=subprocess.DEVNULL,
                stdout=self.capture,
                stderr=self.capture,
                pass_fds=(child_in, child_out, mark),
                process_group=0,  # a Ctrl-C is for the agent; and its children can be ended with it
                cwd=folder,
                umask=inherited_umask(),
                env=launch.environment(self.number, self.numbers),
            )
        except BaseException:
            for fd in (self.fd_in, self.fd_out, self.capture):
                os.close(fd)
            raise
        finally:
            for fd in (child_in, child_out, mark):
                os.close(fd)
        for fd in (self.fd_in, self.fd_out):
            os.set_blocking(fd, False)
            if sys.platform == "linux":
                with contextlib.suppress(OSError):  # over the user's limit for pipes
                    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    # ------------------------------------------------------------ the pipes

    def send(
        self,
        function: str,
        body: bytes,
        properties: FunctionProperties,
        attempt: int,
        timeout_ms: int,
        tasks: list[TaskRecord],
        options: RunOptions | None = None,
        numbers: tuple[int, ...] = (),
    ) -> None:
        """Send a chunk, after its function if the worker does not have it.

        `numbers`: of the workers whose room it takes.
        """
        if function in self.functions:
            self.functions.move_to_end(function)
        else:
            self._out += pack(LoadFunction(function, body))
            self.functions[function] = None
            if len(self.functions) > FUNCTIONS:
                self._out += pack(LoadFunction(self.functions.popitem(last=False)[0], b""))
        self.count += 1
        if not self.chunks:
            self.moved_s = time.monotonic()
        self._out += pack(TaskChunk(self.count, function, attempt, tasks, options))
        self.chunks.append(ChunkInFlight(self.count, function, properties, attempt, timeout_ms, tasks, numbers))
        self.write()

    def remember_key(self, key: str, now_us: int) -> None:
        """Note that it gets a chunk with an affinity key."""
        self.keys[key] = now_us
        self.keys.move_to_end(key)
        if len(self.keys) > KEYS:
            self.keys.popitem(last=False)

    @property
    def leaving(self) -> bool:
        """True if it ends, and takes with it what its tasks have loaded."""
        return bool(self.ending or self.retired_us or self.pipe_closed_us)

    @property
    def backlog(self) -> int:
        """Bytes that the pipe has no room for yet."""
        return len(self._out)

    def write(self) -> None:
        try:
            while self._out:
                with memoryview(self._out) as view, view[:PIPE_BYTES] as part:
                    sent = os.write(self.fd_in, part)
                del self._out[:sent]
        except BlockingIOError:
            pass
        except OSError:  # it is dead; read() finds that out
            self._out.clear()

    def read(self) -> tuple[list[FromWorker], bool]:
        """Return (messages, True if the pipe has ended)."""
        ended = False
        try:
            while data := os.read(self.fd_out, READ_BYTES):
                self._frames.feed(data)
                if len(data) < READ_BYTES // 16:
                    break
            else:
                ended = True
        except BlockingIOError:
            pass
        except OSError:
            ended = True
        self.moved_s = time.monotonic()
        return self._frames.messages(), ended

    @property
    def out_of_step(self) -> bool:
        """True if the worker has sent what it cannot have sent itself."""
        return self._frames.out_of_step

    def mark_out_of_step(self) -> None:
        self._frames.out_of_step = True

    # ------------------------------------------------------------ progress

    def running(self) -> tuple[ChunkInFlight, int, int] | None:
        """Return (chunk, index, started_us) of the task that runs; None without one.

        While a function is loaded, that is the chunk's first task.
        """
        if not self.chunks:
            return None
        n, index, started = self.progress.current()
        chunk = self.chunks[0]
        if n != chunk.n or index == -1 or index >= len(chunk.tasks):
            return None
        return chunk, index if index >= 0 else 0, started

    def begun(self, chunk: ChunkInFlight) -> int:
        """Return the index of the first task that the worker has surely not begun.

        Valid when it has exited, or was stopped.
        """
        at, limit = self.current_chunk, chunk.end
        if self.stop is not None:
            limit = min(limit, max(self.stop - position(chunk.n, 0), 0))
        if at > chunk.n:
            return limit
        return min(max(self.progress.numbers[FIRST], 0), limit) if at == chunk.n else 0

    @property
    def loading(self) -> bool:
        return self.progress.current()[1] <= -2

    def ask_stop(self, now_us: int) -> None:
        """Ask the worker to finish the task that runs, and to start no other."""
        first = position(self.chunks[0].n, 0) if self.chunks else position(self.count + 1, 0)
        chunk, index = self._place()
        here = position(chunk, max(index, 0) + 1) if chunk and index != -1 else 0
        self.stop = max(first, here)
        self.stop_us = now_us
        self.progress.numbers[STOP] = self.stop

    def _place(self) -> tuple[int, int]:
        """Return (chunk, index) of the running task; (0, -1) if there is no such place."""
        chunk, index, _ = self.progress.current()
        return (chunk, index) if 0 < chunk <= self.count and index < CHUNK_STEP else (0, -1)

    def stopped(self) -> bool:
        """Return True if the worker surely starts nothing behind the stop.

        Valid some time after `ask_stop`. If the worker had just started a task there, the stop
        moves behind it.
        """
        assert self.stop is not None
        chunk, index = self._place()
        if chunk and index >= 0 and position(chunk, index) >= self.stop:
            self.stop = position(chunk, index + 1)
            self.progress.numbers[STOP] = self.stop
            return False
        return True

    def resume(self) -> None:
        self.stop = None
        self.progress.numbers[STOP] = NEVER

    def memory_exceeded(self, limit_bytes: int, now_us: int) -> int:
        """Return the bytes in use if they are more than a limit; else 0."""
        return self._memory.exceeded(limit_bytes, now_us)

    # ------------------------------------------------------------ its end

    def retire(self, now_us: int) -> None:
        """Ask an idle worker to end in an orderly way: it reads the end of its pipe."""
        if not self.retired_us:
            self.retired_us = now_us
            os.close(self.fd_in)
            self.fd_in = -1

    def signal(self, number: int) -> None:
        """Signal the worker and the processes that it started."""
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, number)
        if self.process.returncode is None:  # it may have left its process group
            with contextlib.suppress(OSError):
                os.kill(self.process.pid, number)

    def exited(self) -> bool:
        """Return True if the process has exited.

        It is not reaped, so its process group keeps its number.
        """
        if self.process.returncode is not None:
            return True
        if not hasattr(os, "waitid"):  # macOS before Python 3.13
            return self.process.poll() is not None
        try:
            return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def kill(self) -> None:
        """Kill the worker and what its tasks have started.

        A detached function's children stay. Others may have left its process group. A stopped
        worker adopts their orphans meanwhile.
        """
        if not self.detached:
            self.signal(signal.SIGSTOP)
            seen: set[int] = set()
            for _ in range(_LOOKS):
                if not (fresh := descendants_of(self.process.pid) - seen):
                    break
                kill_all(fresh)
                seen |= fresh
        self.signal(signal.SIGKILL)

    @property
    def detached(self) -> bool:
        """True if children of the function that ran last may outlive it."""
        begun = bool(self.chunks) and self.current_chunk == self.chunks[0].n
        return self.chunks[0].properties.detached if begun else self._was_detached

    def finish_chunk(self) -> None:
        """Forget the chunk that the worker has finished."""
        self._was_detached = self.chunks.popleft().properties.detached

    def reap(self) -> int:
        """Kill what the worker left running; return its exit code (< 0: a signal)."""
        self.signal(signal.SIGKILL)
        return self.process.wait()

    def close(self) -> None:
        if sys.platform == "linux":
            # What a detached function has left behind would print into memory that nobody reads.
            with contextlib.suppress(OSError):
                fcntl.fcntl(self.capture, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        for fd in (self.fd_in, self.fd_out, self.capture):
            with contextlib.suppress(OSError):  # retired: -1
                os.close(fd)
        self.progress.close()

    @property
    def current_chunk(self) -> int:
        return self.progress.numbers[CHUNK]


def _scratch(folder: Path, name: str) -> int:
    """Open a file without a name, so that no crash leaves it behind."""
    if hasattr(os, "memfd_create"):  # Linux
        return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with tempfile.TemporaryFile(dir=folder) as f:
        return os.dup(f.fileno())
