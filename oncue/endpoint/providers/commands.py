"""Runs the commands of a scheduler, bounded in time and output."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping
from typing import IO

import msgspec

from oncue.endpoint.providers.jobs import SchedulerAway
from oncue.processes.children import descendants_of, kill_all

MOST_OUTPUT = 32 << 20  # bytes; a line of squeue has 100
MOST_WHY = 500  # characters of a message
_CHUNK = 1 << 16
_LAST_WORDS_S = 1.0  # to read what is left in the pipes of a command that has ended

#: Variables that a scheduler's commands get from the agent's environment. The rest would end up in
#: the jobs: most schedulers copy the environment of a submission.
_NAMES = frozenset(
    (
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR"),
        *("LD_LIBRARY_PATH", "MODULEPATH", "MODULESHOME", "KRB5CCNAME", "KUBECONFIG", "SLURM_CONF"),
    )
)
_PREFIXES = ("LC_", "SBATCH_", "SQUEUE_", "PBS_", "SGE_", "LSF_", "LSB_", "EGO_", "CONDOR_", "_CONDOR_")
#: Those of the job that the agent itself may run in.
_OF_A_JOB = ("PBS_JOB", "PBS_O_", "PBS_NODE", "LSB_JOB", "SGE_O_", "SGE_TASK", "SGE_STD")


class CommandHung(SchedulerAway):
    """A command of the scheduler gave no answer in time, and was ended."""

    code = "scheduler-hung"


class Finished(msgspec.Struct, frozen=True):
    """Result of a command."""

    command: str  # its name
    code: int  # negative: ended by this signal
    out: str
    err: str

    @property
    def why(self) -> str:
        """The command's own words on its failure, in one line."""
        said = " ".join((self.err.strip() or self.out.strip()).split())
        return f"{self.command}: {said[:MOST_WHY] or f'exit code {self.code}'}"

    def failed_but_for(self, expected: re.Pattern[str]) -> bool:
        """Return True if the command failed for more than what `expected` finds."""
        other = [line for line in self.err.splitlines() if line.strip() and not expected.search(line)]
        return self.code != 0 and bool(other or not self.err.strip())


class Commands:
    """Commands of one scheduler."""

    def __init__(self, timeout_s: float, environ: Mapping[str, str] | None = None, also: tuple[str, ...] = ()) -> None:
        """`also`: beginnings of the names of further variables that the commands get."""
        self._timeout_s = timeout_s
        self._environ = command_environment(os.environ if environ is None else environ, also)

    def run(self, *command: str, stdin: str = "", timeout_s: float | None = None) -> Finished:
        """Run a command to its end.

        Raises CommandHung if it takes longer than the limit, SchedulerAway if it cannot be started
        or floods its output.
        """
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            process = subprocess.Popen(
                command,
                env=self._environ,
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as e:
            raise SchedulerAway(
                f"{command[0]} cannot be started: {e.strerror}",
                remedy=f"start the endpoint where {command[0]} is in the PATH, such as on a login node",
                command=command[0],
            ) from None
        try:
            out, err = _communicate(process, stdin.encode(), time.monotonic() + limit_s)
        except TimeoutError:
            raise CommandHung(f"{command[0]}: no answer in {limit_s:.0f} s", command=command[0]) from None
        except OverflowError:
            raise SchedulerAway(
                f"{command[0]}: its output is over {MOST_OUTPUT >> 20} MiB", command=command[0]
            ) from None
        finally:
            _end(process)
        return Finished(command[0], process.returncode, out, err)


def user_name() -> str:
    """Return the name of this process's user, whatever LOGNAME says."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def command_environment(environ: Mapping[str, str], also: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the variables that a scheduler's commands need, with messages in English."""
    kept = {
        name: value
        for name, value in environ.items()
        if (name in _NAMES or name.startswith(_PREFIXES + also)) and not name.startswith(_OF_A_JOB)
    }
    return kept | {"LC_ALL": "C.UTF-8"}


def _communicate(process: subprocess.Popen[bytes], stdin: bytes, end_s: float) -> tuple[str, str]:
    """Return stdout and stderr of a process. Raises TimeoutError, OverflowError.

    A child that it leaves behind with its pipes open is not waited for.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    texts: dict[IO[bytes], bytearray] = {process.stdout: bytearray(), process.stderr: bytearray()}
    with selectors.DefaultSelector() as selector:
        for pipe in texts:
            selector.register(pipe, selectors.EVENT_READ)
        if process.stdin is not None:
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE)
        while selector.get_map():
            if process.poll() is not None:
                end_s = min(end_s, time.monotonic() + _LAST_WORDS_S)
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                break
            for key, _ in selector.select(min(left_s, 0.5)):
                if key.fileobj is process.stdin:
                    stdin = _write(process.stdin, stdin, selector)
                elif not (chunk := os.read(key.fd, _CHUNK)):
                    selector.unregister(key.fileobj)
                else:
                    texts[key.fileobj].extend(chunk)  # type: ignore[index]
                    if len(texts[key.fileobj]) > MOST_OUTPUT:  # type: ignore[index]
                        raise OverflowError
    try:
        process.wait(max(0.0, end_s - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    out, err = (text.decode(errors="replace") for text in texts.values())
    return out, err


def _write(pipe: IO[bytes], data: bytes, selector: selectors.BaseSelector) -> bytes:
    """Write what the pipe takes; return the rest. Closes the pipe after the last."""
    try:
        data = data[os.write(pipe.fileno(), data) :]
    except BlockingIOError:
        return data
    except BrokenPipeError:
        data = b""
    if not data:
        selector.unregister(pipe)
        pipe.close()
    return data


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a command, and close its pipes.

    That is its process group, and if it has not ended, children in groups of their own too.
    """
    if process.poll() is None:
        kill_all(descendants_of(process.pid))
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    with contextlib.suppress(subprocess.TimeoutExpired):  # in the kernel's hands: a dead file server
        process.wait(_LAST_WORDS_S)
