"""Process of an Evaluator: answers questions, on stdin and stdout.

The kernel ends this process when an evaluation has used its CPU time (ITIMER_PROF), also while C++
code runs that holds the interpreter. Memory is limited too. When the server dies, stdin ends, and
so does this process.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import BinaryIO

import msgspec

from oncue.errors import OncueError
from oncue.protocol import cloudevents
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import Event
from oncue.rules.active_rules import packed_arguments
from oncue.rules.evaluation.messages import (
    EVENT,
    EXPLAINED,
    FAILED,
    FIRES,
    LENGTH_BYTES,
    MATCHED,
    NO,
    READY,
    RULES_BYTES,
    WINDOW,
    Answer,
    Envelope,
    Question,
)
from oncue.rules.evaluation.rule_source import unpack_rule
from oncue.rules.explain import decide, explain
from oncue.rules.operators.event_rows import EventRows
from oncue.rules.operators.records import ClosedWindow
from oncue.rules.parsing.rule_file import Rule
from oncue.rules.parsing.rule_run import task_sources

MEMORY_BYTES = 1 << 30  # for one evaluation, beside the rules that are kept
ARGUMENTS_BYTES = 64 * 1024 * 1024  # of all runs of a rule, for one event
EXPLAINED_BYTES = 1024 * 1024
REMEDY = "let the rule copy less of the event, in `when` and `args`"


def main() -> None:
    rules: dict[int, Rule] = {}
    before = resident_bytes()
    used = 0

    def answer(body: bytes) -> bytes:
        nonlocal used
        envelope = decode(Envelope, body)
        if envelope.source:
            rules[envelope.rule] = unpack_rule(envelope.source)
            used = max(0, resident_bytes() - before)
        return encode(msgspec.structs.replace(_limited(rules[envelope.rule], envelope), rules_bytes=used))

    serve(answer)


def serve(answer: Callable[[bytes], bytes]) -> None:
    """Answer messages on stdin until it ends. Limits the memory of this process."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get among the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server
    _limit()
    answers.write(READY)
    answers.flush()
    questions = sys.stdin.buffer
    while (body := _read(questions)) is not None:
        packed = answer(body)
        answers.write(len(packed).to_bytes(LENGTH_BYTES, "big") + packed)
        answers.flush()


def resident_bytes() -> int:
    """Return the memory that this process uses; on macOS the most that it has used."""
    with contextlib.suppress(OSError), open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _limit() -> None:
    """Limit memory, and leave no core files."""
    with contextlib.suppress(ValueError, OSError):  # macOS has no limit of the address space
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = MEMORY_BYTES + RULES_BYTES
        least = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_AS, (least, hard))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _read(questions: BinaryIO) -> bytes | None:
    head = questions.read(LENGTH_BYTES)
    if len(head) < LENGTH_BYTES:
        return None
    return questions.read(int.from_bytes(head, "big"))


def _limited(rule: Rule, envelope: Envelope) -> Answer:
    """Answer within the CPU time; SIGPROF ends the process at its end."""
    start = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, envelope.cpu_s)
    try:
        answer = _answer(rule, envelope.question)
    except OncueError as e:
        answer = Answer(FAILED, stage="args", reason=e.message, remedy=e.remedy)
    except MemoryError:
        reason = f"the rule needs more than {MEMORY_BYTES >> 20} MiB of memory for this event"
        answer = Answer(FAILED, stage="match", reason=reason, remedy=REMEDY)
    except Exception as e:
        answer = Answer(FAILED, stage="match", reason=f"{type(e).__name__}: {e}"[:2_000])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return msgspec.structs.replace(answer, cpu_s=time.process_time() - start)


def _answer(rule: Rule, question: Question) -> Answer:
    if question.what == WINDOW:
        return _fires(rule, EventRows.of(decode(ClosedWindow, question.value)))
    event = cloudevents.from_record(question.value, question.headers)
    if question.what != EVENT:
        return _explained(rule, event, question.disabled_because)
    failed = decide(rule, event)
    if failed is not None:
        return Answer(NO, reason=failed.reason[:EXPLAINED_BYTES])
    if rule.operators is None:
        return _fires(rule, event)
    match = rule.operators.match(rule.name, question.label, question.version, event, question.at_ms, question.mark_us)
    return Answer(MATCHED, match=encode(match), key=rule.operators.partition_key(match))


def _fires(rule: Rule, source: Event | EventRows) -> Answer:
    tasks, size = [], 0
    for index, each in task_sources(rule.runs, source):
        run = rule.runs[index]
        args = packed_arguments(run.args.render(each))
        tasks.append((index, args, run.affinity_key(each)))
        size += len(args)
        if size > ARGUMENTS_BYTES:
            reason = f"the arguments have more than {ARGUMENTS_BYTES:,} bytes"
            return Answer(FAILED, stage="args", reason=reason, remedy=REMEDY)
    return Answer(FIRES, tuple(tasks))


def _explained(rule: Rule, event: Event, disabled_because: str) -> Answer:
    found = explain(rule, event, disabled_because=disabled_because)
    packed = msgspec.json.encode(found)
    if len(packed) > EXPLAINED_BYTES:
        packed = msgspec.json.encode(msgspec.structs.replace(found, args="(too large to be shown)"))
    return Answer(EXPLAINED, match=packed)


if __name__ == "__main__":
    main()
