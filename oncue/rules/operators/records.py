"""What travels in `oncue.matches`: events that a rule with memory has matched, and the time.

    engine ──Match──►┐
    host   ──Tick ──►├── oncue.matches ──► fold (fold.py) ──► Closed ──► tasks
    `oncue dead retry` of a batch ──Closed──►┘

A Match stands alone: it carries the operators by value, so that a record read again gives the same answer although the
rule was changed in between, and of the event only what the function's arguments need.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

from oncue.protocol.codec import encode
from oncue.protocol.records import Stored


class DedupeSpec(Stored, tag="dedupe", frozen=True):
    """The first of a key passes; the others do not until `ttl_ms` after it."""

    key: str  # the template as written; "": source and id
    ttl_ms: int


class BatchSpec(Stored, tag="batch", frozen=True):
    """Events of a key are held until there are `count`, or `size_bytes` of data.size, or `wait_ms` after the first."""

    key: str  # the template as written; "": all in one
    count: int = 0  # 0: any
    size_bytes: int = 0  # 0: any
    wait_ms: int = 0  # 0: for ever


Spec = DedupeSpec | BatchSpec


class Stage(Stored, frozen=True):
    spec: Spec
    key: str  # of this event


class BufferedEvent(Stored, frozen=True):
    """One event, as far as the firing needs it."""

    place: int  # offset of its match; -1 while the log has not given it one
    source: str
    id: str
    row: bytes  # msgpack of the list of values, in the order of `needs`
    size_bytes: int = 0  # data.size, where the batch counts it
    mark_us: int = 0  # when its cause happened


class Match(Stored, tag="match", frozen=True):
    v: int
    rule: str
    label: str
    version: int  # of the deployment that matched: label@version
    at_ms: int  # when the event was accepted
    stages: tuple[Stage, ...]
    needs: tuple[str, ...]  # what the values in the row are: "data.path | stem" ...
    event: BufferedEvent


class Tick(Stored, tag="tick", frozen=True):
    """It is so late in this partition; and no rule has these (rule, spec_hash) any more: their windows close."""

    v: int
    at_ms: int
    retired: tuple[tuple[str, str], ...] = ()


class Closed(Stored, tag="closed", frozen=True):
    """A window that fires. As a record: one that could not, and shall be tried again."""

    v: int
    rule: str
    label: str
    version: int  # under which its newest event matched
    key: str
    needs: tuple[str, ...]
    partition: int
    opening: int  # offset of its first match
    opened_ms: int
    why: str  # first, count, bytes, wait, full, changed
    events: tuple[BufferedEvent, ...]


MatchesRecord = Match | Tick | Closed


@lru_cache(maxsize=4096)
def spec_hash(spec: Spec, needs: tuple[str, ...]) -> str:
    """By what a state is kept: an operator that was changed starts afresh. What is held (a batch) also depends on what
    values were asked for."""
    held = encode(needs) if isinstance(spec, BatchSpec) else b""
    return blake2b(encode(spec) + held, digest_size=8).hexdigest()
