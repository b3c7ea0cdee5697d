"""A worker process.

    python -m oncue.endpoint.worker FD_IN FD_OUT FD_PROGRESS PARENT_PID CLOCK_OFFSET_NS

    read a TaskChunk ─► for each task: unpack ─► call ─► pack ─► shared memory ─► ChunkResults

A pool starts and drives it (pool/worker_process.py) by the messages of pool/protocol.py. stdin is
/dev/null; stdout and stderr are the output file (capture.py). ONCUE_BLOBS names the folder of large
arguments and results. A worker ends when its pool's process ends.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import faulthandler
import os
import signal
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from types import CoroutineType
from typing import Any, NoReturn

import msgspec

from oncue.clocks.process import reader
from oncue.endpoint.pool.protocol import (
    EXIT_OUT_OF_STEP,
    EXIT_PIPES_CLOSED,
    EXIT_WORN,
    HEAD,
    MAGIC,
    LoadFunction,
    TaskChunk,
    WorkerReady,
    decode_to_worker,
    frame,
    pack,
)
from oncue.endpoint.pool.shared_progress import (
    FINISHED_BYTES,
    FIRST,
    HEAD_BYTES,
    INDEX,
    STARTED,
    STOP,
    USED,
    SharedProgress,
    position,
)
from oncue.endpoint.pool.task_folders import TASKS, TASKS_VARIABLE, sweep
from oncue.endpoint.worker.affinity import pin_to_cores
from oncue.endpoint.worker.baseline import Baseline
from oncue.endpoint.worker.capture import Capture
from oncue.endpoint.worker.children import Children
from oncue.endpoint.worker.cleanup import Cleanup, Saved
from oncue.endpoint.worker.descriptors import move_up
from oncue.endpoint.worker.failure import failure
from oncue.endpoint.worker.folder_calls import FolderCalls, needs_folder
from oncue.endpoint.worker.forks import Forks, default_signals
from oncue.endpoint.worker.mpi_run import SHARED
from oncue.endpoint.worker.recycling import Recycling
from oncue.endpoint.worker.task_usage import MEASURED_US, TaskUsage
from oncue.endpoint.worker.values import arguments, packed, unpackable
from oncue.errors import CannotPack
from oncue.functions.body import describe
from oncue.functions.load import Loaded, load
from oncue.functions.main_module import BLANK
from oncue.pickles import PYTHON
from oncue.processes.garbage_collection import keep_what_is_here
from oncue.protocol.codec import encode
from oncue.protocol.payload import MSGPACK
from oncue.protocol.records import ERROR, OK, Ended, Failure, TaskRecord
from oncue.protocol.run_options import RunOptions, merged

FORK_US = 150  # C code cannot fork in less
SLOW_US = 1_000  # after a task that took so long, it is cleaned thoroughly
FLUSH_US = 5_000  # after which the finished tasks of a chunk are sent, at the end of a task
#: Pause before a function that could not be loaded is tried again: a package may be there now.
RELOAD_US = 5_000_000

# Kept, so that a function that replaces them breaks no answer.
_read, _write, _exit = os.read, os.write, os._exit
_encode_value = msgspec.msgpack.Encoder().encode
_decode_args = msgspec.msgpack.Decoder(tuple[list[Any], dict[str, Any]]).decode


class Terminated(BaseException):
    """Raised in the running function on SIGTERM, so that its `finally` blocks run."""


class _Sent(msgspec.Struct, array_like=True, tag="done"):
    """ChunkResults whose tasks are encoded already."""

    n: int
    ended: msgspec.Raw
    last: bool


class Worker:
    """Runs chunks until the pipe ends."""

    def __init__(self, fd_in: int, fd_out: int, fd_mark: int, offset_ns: int) -> None:
        self.fd_in, self.fd_out = move_up(fd_in), move_up(fd_out)
        self.now_us = reader(offset_ns)  # the pool's time, which does not step
        self.progress = SharedProgress.at_worker(fd_mark)
        self.capture = Capture()
        self.children = Children()
        signal.signal(signal.SIGTERM, self.on_term)
        self.forks = Forks(self.on_term, (self.fd_in, self.fd_out), self.children.note, self.capture.forked)
        self.cleanup = Cleanup(os.getcwd())
        self.recycling = Recycling(os.environ)
        self.usage = TaskUsage()
        self.states: dict[str, Saved] = {}  # in which a function's tasks begin
        self.bodies: dict[str, bytes] = {}
        self.loaded: dict[str, Loaded] = {}
        self.broken: dict[str, tuple[int, Failure]] = {}
        self.pieces: list[bytes] = []  # finished, encoded, not sent
        self.used = 0
        self.sent_us = 0
        self.ending = False
        self.detached = False  # the running function's children may outlive it
        self.function = ""  # of the last chunk
        self.baseline = Baseline()
        self.folders = FolderCalls(self.children)
        self.options: RunOptions | None = None  # of the chunk, if its tasks have folders

    # ------------------------------------------------------------ the pipe

    def serve(self) -> None:
        self._send(pack(WorkerReady(os.getpid(), PYTHON)))
        sweep(Path(os.environ[TASKS_VARIABLE]))
        if shared := os.environ.get(SHARED):
            sweep(Path(shared) / TASKS)
        while not self.ending:
            magic, size, crc = HEAD.unpack(self._read(HEAD.size))
            body = self._read(size) if magic == MAGIC else b""
            if zlib.crc32(body) != crc or not body:
                _exit(EXIT_OUT_OF_STEP)
            message = decode_to_worker(body)
            if isinstance(message, TaskChunk):
                self.run(message)
            elif message.body:
                self._store_body(message)
            else:
                self._drop_function(message.function)

    def _store_body(self, message: LoadFunction) -> None:
        self._drop_function(message.function)
        self.bodies[message.function] = message.body

    def _drop_function(self, function: str) -> None:
        for kept in (self.bodies, self.loaded, self.broken, self.states):
            kept.pop(function, None)

    def _read(self, n: int) -> bytes:
        parts = []
        while n:
            try:
                part = _read(self.fd_in, n)
            except BlockingIOError:  # a function changed it
                os.set_blocking(self.fd_in, True)
                continue
            if not part:  # the pool is gone, or wants no more
                self.end(0)
            parts.append(part)
            n -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[_write(self.fd_out, view) :]
            except BlockingIOError:  # a function changed it
                os.set_blocking(self.fd_out, True)

    def flush(self, n: int, last: bool) -> None:
        """Send the finished tasks.

        Shared memory drops them only after the pipe has them. The pool detects duplicates by their
        index.
        """
        head = b"\xdd" + len(self.pieces).to_bytes(4, "big")  # msgpack array32
        body = _encode_value(_Sent(n, msgspec.Raw(head + b"".join(self.pieces)), last))
        self._send(frame(body))
        numbers = self.progress.numbers
        numbers[USED] = 0
        numbers[FIRST] += len(self.pieces)
        self.pieces.clear()
        self.used = 0

    # ------------------------------------------------------------ a chunk

    def run(self, chunk: TaskChunk) -> None:
        if chunk.function != self.function:
            if self.function and not self.baseline.holds():
                self.end(EXIT_WORN)
            self.function = chunk.function
        self.capture.begin(chunk.function)
        n, numbers, here = chunk.n, self.progress.numbers, position(chunk.n, 0)
        numbers[FIRST] = 0
        numbers[0] = n
        self.sent_us = begun = now = self.now_us()
        if here >= numbers[STOP]:
            self.flush(n, True)
            return
        numbers[STARTED] = now
        numbers[INDEX] = -2
        loaded, why = self._function(chunk.function)
        self.detached, fresh, self.options = False, False, None
        if loaded is not None:
            self.detached, fresh = loaded.body.detached, loaded.body.fresh
            if chunk.options is not None or loaded.body.run is not None or loaded.body.script is not None:
                options = merged(chunk.options, loaded.body.run)
                self.options = options if needs_folder(loaded.body, options) else None
        self.usage.begin()
        now = self.now_us()
        for i, task in enumerate(chunk.tasks[: 1 if fresh else self.recycling.tasks_left]):
            if here + i >= numbers[STOP]:
                break
            now = self._run_task(n, i, task, chunk.attempt, loaded, why, now)
            if now - self.sent_us >= FLUSH_US and i + 1 < len(chunk.tasks):
                self.flush(n, False)
                self.sent_us = now = self.now_us()
        numbers[INDEX] = -1
        if self.recycling.is_due(numbers[FIRST] + len(self.pieces)) or fresh:
            self.cleanup.worn = True
        if not self.capture.no_input():  # once a chunk: it costs a seek, and few read stdin
            self.capture.restore()
        self.flush(n, True)
        if self.children.started or now - begun >= FORK_US:
            self._clean_thoroughly()
        else:
            self.cleanup.look_closer(whole=False)
        if self.cleanup.worn:
            self.end(EXIT_WORN)
        if not self.cleanup.at_home():  # a process that the function started may have removed it
            self.cleanup.go_home()

    def _clean_thoroughly(self) -> None:
        """End child processes, and restore what is not looked at after each short task."""
        # The output file of a worker is also that of the children that it leaves behind.
        if self.children.left() and (self.detached or not self.children.end()):
            self.cleanup.worn = True
        self.cleanup.look_closer()
        if self.cleanup.changed():
            self.cleanup.restore()

    def _run_task(
        self, n: int, i: int, task: TaskRecord, attempt: int, loaded: Loaded | None, why: Failure | None, started: int
    ) -> int:
        """Run one task and write its result to shared memory.

        Return when it ended, unix µs.
        """
        numbers, capture, cleanup = self.progress.numbers, self.capture, self.cleanup
        numbers[STARTED] = started
        numbers[INDEX] = i
        if loaded is not None and self.options is None:
            status, value = self._call(loaded, task)
        elif loaded is not None:
            status, value = self._call_in_folder(loaded, task, attempt)
        else:
            status, value = ERROR, encode(why)
        if not self.forks.original:  # forked by the function, and returned from it
            _exit(0)
        if self.ending:
            self.terminate()
        now = self.now_us()
        cpu_us = peak_bytes = 0
        if self.children.started or now - started >= SLOW_US:
            self._clean_thoroughly()
            now = self.now_us()
            if now - started >= MEASURED_US:
                cpu_us, peak_bytes = self.usage.measure()
            else:
                self.usage.begin()
        output = capture.collect()
        if cleanup.changed():
            cleanup.restore()
        if cleanup.worn:
            numbers[STOP] = 0  # the rest of the chunk is for another worker
        ended = Ended(
            task.id, attempt, status, started, now, value, output, task.event, task.retry_of, task.mark_us, cpu_us, peak_bytes
        )  # fmt: skip
        piece = encode(ended)
        size = len(piece)
        if self.used + size + 4 > FINISHED_BYTES:
            self.flush(n, False)
        at = HEAD_BYTES + self.used
        self.progress.map[at : at + 4 + size] = size.to_bytes(4, "little") + piece
        self.used += size + 4
        numbers[USED] = self.used
        self.pieces.append(piece)
        return now

    def _call(self, loaded: Loaded, task: TaskRecord) -> tuple[int, bytes]:
        """Call the function; return (status, value or Failure as bytes)."""
        try:
            payload = task.args
            if payload[:1] == MSGPACK:
                args, kwargs = _decode_args(payload[1:])
            else:
                args, kwargs = arguments(payload)  # type: ignore[assignment]
            run = self.cleanup.saved.context.copy().run
            result = (
                run(_run_async, loaded.call, args, kwargs) if loaded.is_async else run(loaded.call, *args, **kwargs)
            )
            if type(result) is CoroutineType:  # a partial or a lambda around an async function
                result = run(_finish, result)
        except Terminated:
            self.terminate()
        except BaseException as e:
            return ERROR, encode(failure(e, body=loaded.body))
        try:
            return OK, packed(result)
        except Terminated:
            self.terminate()
        except CannotPack as e:
            return ERROR, encode(unpackable(result, e))
        except BaseException as e:
            return ERROR, encode(failure(e, "the result could not be stored"))

    def _call_in_folder(self, loaded: Loaded, task: TaskRecord, attempt: int) -> tuple[int, bytes]:
        assert self.options is not None
        try:
            return self.folders.call(loaded.body, self.options, task, attempt, lambda: self._call(loaded, task))
        except Terminated:
            self.terminate()

    # ------------------------------------------------------------ functions

    def _function(self, function: str) -> tuple[Loaded | None, Failure | None]:
        """Return the loaded function, or the reason why it cannot be loaded.

        It is loaded for its first task, so that a crash in an import is that task's.
        """
        found = self.loaded.get(function)
        if found is not None:
            found.activate()
            self.cleanup.use(self.states[function])
            sys.modules["__main__"] = found.main
            return found, None
        now = self.now_us()
        if function in self.broken and now - self.broken[function][0] < RELOAD_US:
            return None, self.broken[function][1]
        try:
            body = describe(self.bodies[function])
            self.capture.loading = True
            found = self.loaded[function] = self.cleanup.load(lambda: load(body))
        except Terminated:
            self.terminate()
        except BaseException as e:
            self.broken[function] = (now, failure(e))
            return None, self.broken[function][1]
        finally:
            self.capture.loading = False
        self.bodies.pop(function, None)
        self.broken.pop(function, None)
        self.states[function] = self.cleanup.saved
        sys.modules["__main__"] = found.main
        return found, None

    # ------------------------------------------------------------ signals and forks

    def end(self, code: int) -> NoReturn:
        """End in an orderly way: as a program, with exit functions."""
        with contextlib.suppress(BaseException):
            os.close(self.fd_out)  # the pool sends nothing more
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
        if not self.detached:
            self.children.end()
        _exit(code)

    def terminate(self) -> NoReturn:
        """End as SIGTERM asks, after the function's `finally` blocks."""
        if self.progress.numbers[INDEX] == -1:  # no function runs
            self.end(128 + signal.SIGTERM)
        if not self.detached:
            self.children.end()
        _exit(128 + signal.SIGTERM)

    def on_term(self, _number: int, _frame: Any) -> None:
        self.ending = True
        raise Terminated


def _run_async(call: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    return _finish(call(*args, **kwargs))


def _finish(coroutine: Any) -> Any:
    import asyncio  # imported on use: 15 ms and 6 MB

    return asyncio.run(coroutine)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the pool's process ends.

    Linux only. Elsewhere the worker finds the end of the pipe after the function.
    """
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent:  # the parent ended before the call
            _exit(0)


def main() -> None:
    fd_in, fd_out, fd_mark, parent, offset_ns = (int(a) for a in sys.argv[1:6])
    die_with_parent(parent)
    sys.argv[1:] = []
    pin_to_cores(os.environ)
    default_signals()
    worker = Worker(fd_in, fd_out, fd_mark, offset_ns)
    with contextlib.suppress(OSError, ValueError):
        faulthandler.enable(2)
    sys.modules["__main__"] = BLANK
    keep_what_is_here()
    try:
        worker.serve()
    except Terminated:
        worker.terminate()
    except BrokenPipeError:  # the pool is gone
        _exit(0)
    except OSError as e:  # of the worker's own; a function's errors end only the task
        if e.errno == errno.EBADF:
            _exit(EXIT_PIPES_CLOSED)
        raise
    _exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main()
