"""Evaluator: asks a process of its own about rules, within limits.

The process (worker.py) is started for the first question and kept. An evaluation may use CPU_S of
CPU time, and more for large events. The kernel ends the process then, and the next question starts
another one. So neither a rule nor an event can hold the server, whatever the machine's load is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping

import psutil

from oncue.errors import OncueError
from oncue.protocol.codec import decode, encode
from oncue.rules.evaluation.messages import LENGTH_BYTES, READY, RULES_BYTES, Answer, Envelope, Question
from oncue.rules.evaluation.rule_source import pack_rule
from oncue.rules.parsing.rule_file import Rule

CPU_S = 0.5  # of one evaluation
CPU_S_PER_BYTE = 1e-6  # and for each byte of the event
ANSWER_S = 10.0  # on a loaded machine; a process that is stopped is replaced then
START_S = 60.0
TRIES = 2  # the process may have been killed by somebody else
KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV", "SYSTEMROOT")
KEPT_PREFIXES = ("LC_", "PYTHON", "LD_", "DYLD_", "COV_")


class OverBudget(Exception):
    """Raised when an evaluation was ended; its text is the reason."""

    def __init__(self, why: str, cpu_s: float) -> None:
        super().__init__(why)
        self.cpu_s = cpu_s  # that it may have used, or kept others waiting


class Unanswered(Exception):
    """Raised when the process failed, not the rule; its text is the reason."""


class EvaluatorBusy(OncueError):
    """Raised when too many questions wait."""


class Evaluator:
    """Answers one question at a time. Close it at the end.

    `waiting`: questions that may wait for others, before EvaluatorBusy.
    """

    def __init__(self, waiting: int = 1_000) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._rules: dict[int, tuple[int, Rule]] = {}  # id() -> number in the process; keeps the rule alive
        self._rules_bytes = 0
        self._asking = asyncio.Lock()
        self._waiting, self._most = 0, waiting

    async def ask(self, rule: Rule, question: Question) -> Answer:
        """Return the answer.

        Raises OverBudget: the rule should not be asked again; Unanswered, EvaluatorBusy.
        """
        if self._waiting >= self._most:
            raise EvaluatorBusy("too many rules are evaluated at this moment", remedy="try again in a moment")
        self._waiting += 1
        try:
            async with self._asking:
                return await self._tried(rule, question)
        finally:
            self._waiting -= 1

    async def _tried(self, rule: Rule, question: Question) -> Answer:
        why = ""
        cpu_s = CPU_S + CPU_S_PER_BYTE * len(question.value)
        for _ in range(TRIES):
            try:
                process = await self._started()
            except (OSError, EOFError) as e:  # TimeoutError too
                await self.close()
                raise Unanswered(f"the process that evaluates rules cannot start: {e or type(e).__name__}") from None
            try:
                return await self._asked(process, rule, question, cpu_s)
            except TimeoutError:
                asleep = _sleeps(process.pid)
                await self.close()
                if asleep:
                    raise OverBudget("waited for something outside, and was ended", ANSWER_S) from None
                why = ""
            except (OSError, EOFError):
                why = await self._ended(process)
                await self.close()
            if why == _signal_text(signal.SIGPROF):
                raise OverBudget(f"took more than {cpu_s:.1f} s of CPU time, and was ended", cpu_s)
        if why:
            raise OverBudget(why, cpu_s)
        raise Unanswered(f"the process that evaluates rules has not answered in {ANSWER_S:g} s")

    async def _asked(self, process: asyncio.subprocess.Process, rule: Rule, question: Question, cpu_s: float) -> Answer:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            envelope = self._envelope(rule, question, cpu_s)
            packed = encode(envelope)
            async with asyncio.timeout(ANSWER_S):
                process.stdin.write(len(packed).to_bytes(LENGTH_BYTES, "big") + packed)
                await process.stdin.drain()
                head = await process.stdout.readexactly(LENGTH_BYTES)
                answer = decode(Answer, await process.stdout.readexactly(int.from_bytes(head, "big")))
        except asyncio.CancelledError:  # an answer that nobody reads would be taken for the next one
            await self.close()
            raise
        self._rules[id(rule)] = (envelope.rule, rule)
        self._rules_bytes = answer.rules_bytes
        return answer

    def _envelope(self, rule: Rule, question: Question, cpu_s: float) -> Envelope:
        known = self._rules.get(id(rule))
        if known is not None:
            return Envelope(known[0], b"", cpu_s, question)
        return Envelope(len(self._rules), pack_rule(rule), cpu_s, question)

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is not None and self._rules_bytes > RULES_BYTES:
            await self.close()
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "oncue.rules.evaluation.worker",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=_environment(os.environ),
                start_new_session=True,
            )
            assert self._process.stdout is not None
            async with asyncio.timeout(START_S):
                await self._process.stdout.readexactly(len(READY))
        return self._process

    async def _ended(self, process: asyncio.subprocess.Process) -> str:
        """Return how the process ended, in words."""
        try:
            async with asyncio.timeout(ANSWER_S):
                code = await process.wait()
        except TimeoutError:
            return "closed its pipe"
        return _signal_text(-code) if code < 0 else f"ended its process with code {code}"

    async def close(self) -> None:
        """Kill the process."""
        process, self._process = self._process, None
        self._rules.clear()
        self._rules_bytes = 0
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await asyncio.shield(process.wait())


def _sleeps(pid: int) -> bool:
    """Return True if a process waits; False: it runs, or somebody has stopped it."""
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_SLEEPING, psutil.STATUS_DISK_SLEEP)
    except psutil.NoSuchProcess:
        return False


def _signal_text(number: int) -> str:
    with contextlib.suppress(ValueError):
        return f"ended its process ({signal.Signals(number).name}; memory may have been too little)"
    return f"ended its process (signal {number})"


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what Python needs to start, without tokens and passwords."""
    return {name: value for name, value in environ.items() if name in KEPT or name.startswith(KEPT_PREFIXES)}
