"""Process of a Surveyor: answers questions, on stdin and stdout.

As in evaluation/worker.py, the kernel ends it when a question has used its CPU time.
"""

from __future__ import annotations

import hashlib
import signal
from typing import Any

import msgspec
from msgspec.structs import replace

from oncue.errors import Invalid, OncueError
from oncue.protocol import cloudevents
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import Event
from oncue.rules.active_rules import MODE_WHY
from oncue.rules.evaluation.worker import resident_bytes, serve
from oncue.rules.explain import EMPTY_LIST, decide, explain, rendered
from oncue.rules.matching.index import Index
from oncue.rules.parsing.rule_file import Rule, RuleSet, parse
from oncue.rules.survey.messages import FAILED, FIRES, MATCHED, NO, RuleText, SurveyAnswer, SurveyQuestion, Verdict

FEW_RULES = 50  # of more, only those that the index finds are tested, so others give no reason
DISABLED, SHADOW = "enabled: false", "mode: shadow"
ARGS_CHARS = 500
CHARS = 300  # of a condition or a reason


class _Files:
    """Rule files that this process has parsed."""

    def __init__(self) -> None:
        self._parsed: dict[str, RuleSet | str] = {}
        self._before = resident_bytes()

    def answer(self, body: bytes) -> bytes:
        """Answer a packed question within its CPU time, which SIGPROF ends."""
        question = decode(SurveyQuestion, body)
        signal.setitimer(signal.ITIMER_PROF, question.cpu_s)
        try:
            return encode(self._survey(question))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def _survey(self, question: SurveyQuestion) -> SurveyAnswer:
        rules: list[tuple[str, Rule]] = []
        broken: list[tuple[str, str]] = []
        left_out: list[str] = []
        for file in question.files:
            found = self._file(file)
            if isinstance(found, str):
                broken.append((file.label, found))
            else:
                left_out += [rule.name for rule in found.rules if rule.follows is not None]
                rules += [
                    (file.label, rule)
                    for rule in found.rules
                    if rule.follows is None and (not question.only or rule.name in question.only)
                ]
        index = Index([(pair, pair[1].conditions) for pair in rules]) if len(rules) > FEW_RULES else None
        verdicts: list[tuple[Verdict, ...]] = []
        for value, headers in question.events:
            try:
                event = cloudevents.from_record(value, headers)
            except OncueError:  # an older version took it
                verdicts.append(())
                continue
            tested = rules if index is None else index.candidates(event)
            found_now = ((label, _verdict(rule, event, question.with_args)) for label, rule in tested)
            verdicts.append(tuple(replace(v, label=label) for label, v in found_now if v is not None))
        return SurveyAnswer(
            tuple(verdicts),
            tuple(broken),
            tuple(rule.name for _, rule in rules),
            tuple(left_out),
            max(0, resident_bytes() - self._before),
        )

    def _file(self, file: RuleText) -> RuleSet | str:
        if file.key not in self._parsed:
            try:
                self._parsed[file.key] = parse(file.text, file.label, triggers=None, stored=True)
            except OncueError as e:
                self._parsed[file.key] = str(e)[:CHARS]
        return self._parsed[file.key]


def _verdict(rule: Rule, event: Event, with_args: bool) -> Verdict | None:
    """Return what the rule does with the event; None: its `on` is about others."""
    try:
        failed = decide(rule, event)
        if failed is None and rule.enabled:
            return _of_match(rule, event, with_args)
        if failed is None:
            return Verdict(rule.name, NO, DISABLED, f"`{DISABLED}` in its file", held=len(rule.conditions) + 1)
        if failed.step < rule.of_on:
            return None
        step = explain(rule, event).steps[-1]
        why = f"{step.condition}: found {step.found}, wanted {step.wanted}"[:CHARS]
        return Verdict(rule.name, NO, step.condition[:CHARS], why, held=failed.step)
    except Exception as e:
        return Verdict(rule.name, FAILED, why=f"{type(e).__name__}: {e}"[:CHARS])


def _of_match(rule: Rule, event: Event, with_args: bool) -> Verdict:
    if rule.mode == "shadow":
        return Verdict(rule.name, NO, SHADOW, MODE_WHY["shadow"], held=len(rule.conditions) + 1)
    if rule.operators is None:
        args, trouble = rendered(rule, event)
        if args == [] and rule.has_items:
            return Verdict(rule.name, NO, EMPTY_LIST, EMPTY_LIST, held=len(rule.conditions) + 1)
        if trouble:
            return Verdict(rule.name, FAILED, why=trouble[:CHARS])
        return _with_args(rule, args) if with_args else Verdict(rule.name, FIRES)
    try:
        rule.operators.match(rule.name, "", 0, event, 0, 0)
    except Invalid as e:
        return Verdict(rule.name, FAILED, why=e.message[:CHARS])
    limits, operators = bool(rule.operators.limiters), [each.operator for each in rule.operators.operators]
    # A firing may have an empty list for `for_each`: then it has no task.
    suppresses = limits or rule.has_items or any(operator.SUPPRESSES for operator in operators)
    holds = limits or any(operator.BUFFERS for operator in operators)
    return Verdict(rule.name, MATCHED, why=rule.operators.describe()[:CHARS], suppresses=suppresses, holds=holds)


def _with_args(rule: Rule, args: Any) -> Verdict:
    packed = msgspec.json.encode(args, enc_hook=str)
    text = packed[:ARGS_CHARS].decode("utf-8", "ignore")
    return Verdict(rule.name, FIRES, args=text, args_hash=hashlib.blake2b(packed, digest_size=16).digest())


if __name__ == "__main__":
    serve(_Files().answer)
