"""Surveyor: tests rule files with stored events, in a process that can be killed."""

from __future__ import annotations

import asyncio
import hashlib
import signal
from collections.abc import Sequence

from oncue.errors import OncueError
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import Deployment, Headers
from oncue.rules.evaluation.killable_process import KillableProcess, signal_text
from oncue.rules.evaluation.messages import RULES_BYTES
from oncue.rules.survey.messages import RuleText, SurveyAnswer, SurveyQuestion

CPU_S = 10.0  # of one question, which has a page of events
ANSWER_S = 60.0
WAITING = 32  # questions that may wait for one another


class SurveyFailed(OncueError):
    """Rules could not be tested with stored events."""

    code = "survey-failed"


class Surveyor:
    """Answers one question at a time, of each caller one in turn.

    Close it at the end.
    """

    def __init__(self) -> None:
        self._process = KillableProcess("oncue.rules.survey.worker")
        self._known: set[str] = set()
        self._asking = asyncio.Lock()
        self._of_caller: dict[str, tuple[asyncio.Lock, int]] = {}
        self._rules_bytes = self._waiting = 0

    async def ask(
        self,
        caller: str,
        files: Sequence[Deployment],
        only: Sequence[str],
        events: Sequence[tuple[bytes, Headers]],
        with_args: bool = False,
    ) -> SurveyAnswer:
        """Return the verdicts of all rules of these files. Raises SurveyFailed."""
        if self._waiting >= WAITING:
            raise SurveyFailed("too many rules are tested at this moment", remedy="try again in a moment")
        lock, users = self._of_caller.get(caller, (asyncio.Lock(), 0))
        self._of_caller[caller] = lock, users + 1
        self._waiting += 1
        try:
            async with lock, self._asking:
                return await self._asked(files, only, events, with_args)
        finally:
            self._waiting -= 1
            lock, users = self._of_caller.pop(caller)
            if users > 1:
                self._of_caller[caller] = lock, users - 1

    async def _asked(
        self,
        files: Sequence[Deployment],
        only: Sequence[str],
        events: Sequence[tuple[bytes, Headers]],
        with_args: bool,
    ) -> SurveyAnswer:
        try:
            if self._rules_bytes > RULES_BYTES:
                await self._process.close()
            if await self._process.start():
                self._known.clear()
            texts = await asyncio.to_thread(lambda: tuple(self._text(d) for d in files))
            question = SurveyQuestion(texts, tuple(only), tuple(events), CPU_S, with_args)
            packed = await asyncio.to_thread(encode, question)
            answer = decode(SurveyAnswer, await self._process.ask(packed, ANSWER_S))
        except asyncio.CancelledError:
            await self._process.close()
            raise
        except TimeoutError:
            await self._process.close()
            raise _failed(f"that took more than {ANSWER_S:g} s") from None
        except (OSError, EOFError) as e:
            why = await self._process.ended() if self._process.pid else str(e)
            await self._process.close()
            over = why == signal_text(signal.SIGPROF)
            raise _failed(f"that took more than {CPU_S:g} s of CPU time" if over else f"the process {why}") from None
        self._known.update(text.key for text in texts)
        self._rules_bytes = answer.rules_bytes
        return answer

    def _text(self, d: Deployment) -> RuleText:
        key = hashlib.blake2b(f"{d.label}\0{d.text}".encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        return RuleText(key, d.label, "" if key in self._known else d.text)

    async def close(self) -> None:
        """Kill the process."""
        await self._process.close()


def _failed(why: str) -> SurveyFailed:
    return SurveyFailed(
        f"the rules could not be tested with these events: {why}", remedy="take fewer rules, or a shorter period"
    )
