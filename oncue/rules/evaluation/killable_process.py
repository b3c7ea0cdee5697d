"""KillableProcess: a process for work whose cost somebody else chooses."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping

import psutil

from oncue.rules.evaluation.messages import LENGTH_BYTES, READY

ANSWER_S = 10.0  # on a loaded machine; a process that is stopped is replaced then
START_S = 60.0
KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV", "SYSTEMROOT")
KEPT_PREFIXES = ("LC_", "PYTHON", "LD_", "DYLD_", "COV_")


class KillableProcess:
    """Runs a module that answers messages on stdin and stdout. Close it at the end."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> bool:
        """Start the process, if it does not run; return True if it is new.

        Raises OSError, EOFError, TimeoutError.
        """
        if self._process is not None:
            return False
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            self._module,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=_environment(os.environ),
            start_new_session=True,
        )
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(START_S):
                await self._process.stdout.readexactly(len(READY))
        except BaseException:
            await self.close()
            raise
        return True

    @property
    def pid(self) -> int:
        """Return the id of the process; 0: it does not run."""
        return 0 if self._process is None else self._process.pid

    async def ask(self, packed: bytes, within_s: float = ANSWER_S) -> bytes:
        """Return the answer.

        Raises TimeoutError, OSError, EOFError: the process has ended.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(within_s):
                self._process.stdin.write(len(packed).to_bytes(LENGTH_BYTES, "big") + packed)
                await self._process.stdin.drain()
                head = await self._process.stdout.readexactly(LENGTH_BYTES)
                return await self._process.stdout.readexactly(int.from_bytes(head, "big"))
        except asyncio.CancelledError:  # an answer that nobody reads would be taken for the next one
            await self.close()
            raise

    def sleeps(self) -> bool:
        """Return True if the process waits; False: it runs, or somebody has stopped it."""
        assert self._process is not None
        try:
            return psutil.Process(self._process.pid).status() in (psutil.STATUS_SLEEPING, psutil.STATUS_DISK_SLEEP)
        except psutil.NoSuchProcess:
            return False

    async def ended(self) -> str:
        """Return how the process ended, in words."""
        assert self._process is not None
        try:
            async with asyncio.timeout(ANSWER_S):
                code = await self._process.wait()
        except TimeoutError:
            return "closed its pipe"
        return signal_text(-code) if code < 0 else f"ended its process with code {code}"

    async def close(self) -> None:
        """Kill the process."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await asyncio.shield(process.wait())


def signal_text(number: int) -> str:
    with contextlib.suppress(ValueError):
        return f"ended its process ({signal.Signals(number).name}; memory may have been too little)"
    return f"ended its process (signal {number})"


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what Python needs to start, without tokens and passwords."""
    return {name: value for name, value in environ.items() if name in KEPT or name.startswith(KEPT_PREFIXES)}
