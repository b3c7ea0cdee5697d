"""Messages between a Surveyor and its process: 4 bytes of length, then msgpack."""

from __future__ import annotations

from oncue.protocol.codec import build_decoders
from oncue.protocol.records import Headers, Stored

# Kinds of verdicts:
FIRES = "fires"
MATCHED = "matched"  # the operators of the rule decide what follows
NO = "no"  # `match` or `when` does not hold; a rule whose `on` is about other events has no verdict
FAILED = "failed"  # it should have made a dead letter


class RuleText(Stored, frozen=True):
    """A rule file; `text` is "" if the process has it already."""

    key: str  # hash of label and text
    label: str
    text: str


class SurveyQuestion(Stored, frozen=True):
    """Stored events, and the rule files that are tested with them."""

    files: tuple[RuleText, ...]
    only: tuple[str, ...]  # rules; (): all
    events: tuple[tuple[bytes, Headers], ...]
    cpu_s: float  # the process dies when it is reached
    with_args: bool = False


class Verdict(Stored, frozen=True):
    """One rule for one event."""

    rule: str
    kind: str
    condition: str = ""  # NO: the first one that does not hold
    why: str = ""
    suppresses: bool = False  # MATCHED: the operators may drop the event, or make no task of it
    label: str = ""  # of the rule's file
    held: int = 0  # NO: so many conditions hold
    args: str = ""  # FIRES, if they are asked for: the arguments as JSON, shortened
    args_hash: bytes = b""
    holds: bool = False  # MATCHED: an operator or a limit may hold the event


class SurveyAnswer(Stored, frozen=True):
    """`verdicts` of each event, in order."""

    verdicts: tuple[tuple[Verdict, ...], ...] = ()
    broken: tuple[tuple[str, str], ...] = ()  # label of a file that cannot be read, and why
    rules: tuple[str, ...] = ()  # that were tested
    left_out: tuple[str, ...] = ()  # rules on outcomes, which are no stored events
    rules_bytes: int = 0  # memory that the rules of this process may use


build_decoders(globals())
