"""Evaluator: asks a process of its own about rules, within limits.

The process (worker.py) is started for the first question and kept. An evaluation may use CPU_S of
CPU time, and more for large events. The kernel ends the process then, and the next question starts
another one. So neither a rule nor an event can hold the server, whatever the machine's load is.
"""

from __future__ import annotations

import asyncio
import signal

from oncue.errors import OncueError
from oncue.protocol.codec import decode, encode
from oncue.rules.evaluation.killable_process import ANSWER_S, KillableProcess, signal_text
from oncue.rules.evaluation.messages import RULES_BYTES, Answer, Envelope, Question
from oncue.rules.evaluation.rule_source import pack_rule
from oncue.rules.parsing.rule_file import Rule

CPU_S = 0.5  # of one evaluation
CPU_S_PER_BYTE = 1e-6  # and for each byte of the event
TRIES = 2  # the process may have been killed by somebody else


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
        self._process = KillableProcess("oncue.rules.evaluation.worker")
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
                if self._rules_bytes > RULES_BYTES:
                    await self.close()
                await self._process.start()
            except (OSError, EOFError) as e:  # TimeoutError too
                await self.close()
                raise Unanswered(f"the process that evaluates rules cannot start: {e or type(e).__name__}") from None
            try:
                return await self._asked(rule, question, cpu_s)
            except asyncio.CancelledError:
                await self.close()
                raise
            except TimeoutError:
                asleep = self._process.sleeps()
                await self.close()
                if asleep:
                    raise OverBudget("waited for something outside, and was ended", ANSWER_S) from None
                why = ""
            except (OSError, EOFError):
                why = await self._process.ended()
                await self.close()
            if why == signal_text(signal.SIGPROF):
                raise OverBudget(f"took more than {cpu_s:.1f} s of CPU time, and was ended", cpu_s)
        if why:
            raise OverBudget(why, cpu_s)
        raise Unanswered(f"the process that evaluates rules has not answered in {ANSWER_S:g} s")

    async def _asked(self, rule: Rule, question: Question, cpu_s: float) -> Answer:
        envelope = self._envelope(rule, question, cpu_s)
        answer = decode(Answer, await self._process.ask(encode(envelope), ANSWER_S))
        self._rules[id(rule)] = (envelope.rule, rule)
        self._rules_bytes = answer.rules_bytes
        return answer

    def _envelope(self, rule: Rule, question: Question, cpu_s: float) -> Envelope:
        known = self._rules.get(id(rule))
        if known is not None:
            return Envelope(known[0], b"", cpu_s, question)
        return Envelope(len(self._rules), pack_rule(rule), cpu_s, question)

    async def close(self) -> None:
        """Kill the process."""
        self._rules.clear()
        self._rules_bytes = 0
        await self._process.close()
