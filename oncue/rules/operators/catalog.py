"""The operators that a rule may have.

A new one is a file of its own and one line here. Rules apply their operators in this order,
whatever the order in the rule file is; those with `BUFFERS` come last. Decoders of stored operators
and states are built from the catalogue.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import lru_cache, reduce
from hashlib import blake2b
from operator import or_
from typing import Any, NamedTuple

import msgspec

from oncue.errors import Undecodable
from oncue.protocol.codec import DECODE_ERRORS, encode
from oncue.rules.limiters.catalog import STATES as LIMITER_STATES
from oncue.rules.operators.absent import AbsentOperator
from oncue.rules.operators.after import AfterOperator
from oncue.rules.operators.base import AnyOperator, OperatorState
from oncue.rules.operators.batch import BatchOperator
from oncue.rules.operators.count import CountOperator
from oncue.rules.operators.debounce import DebounceOperator
from oncue.rules.operators.dedupe import DedupeOperator
from oncue.rules.operators.join import JoinOperator
from oncue.rules.operators.order_by import OrderOperator
from oncue.rules.operators.records import KeyedOperator
from oncue.rules.operators.sample import SampleOperator
from oncue.rules.operators.sequence import SequenceOperator
from oncue.rules.operators.throttle import ThrottleOperator
from oncue.rules.operators.window import WindowOperator

OPERATORS: tuple[type[AnyOperator], ...] = (
    DedupeOperator,
    ThrottleOperator,
    SampleOperator,
    DebounceOperator,
    CountOperator,
    JoinOperator,
    SequenceOperator,
    AbsentOperator,
    WindowOperator,
    AfterOperator,
    OrderOperator,
    BatchOperator,
)


class ResolvedOperator(NamedTuple):
    """An operator of a Match, and its id in the keys of its states."""

    operator: AnyOperator
    id: str


class Catalogue:
    """Operators by name, in the order in which a rule applies them."""

    def __init__(self, members: tuple[type[AnyOperator], ...]) -> None:
        self._set(members)

    def _set(self, members: tuple[type[AnyOperator], ...]) -> None:
        self.members = {member.name(): member for member in members}
        # Built here, at import: msgspec builds a decoder on first use, which is not thread-safe.
        self._operators: msgspec.msgpack.Decoder[AnyOperator] = _union_decoder(members)
        self._states: msgspec.msgpack.Decoder[OperatorState] = _union_decoder(
            [*LIMITER_STATES, *(member.STATE for member in members)]
        )

    def decode_operator(self, value: bytes) -> AnyOperator:
        """Raises Undecodable: a newer version wrote it."""
        try:
            return self._operators.decode(value)
        except DECODE_ERRORS as e:
            raise Undecodable(f"the operator cannot be read: {e}") from None

    def decode_state(self, value: bytes) -> OperatorState:
        """Raises Undecodable: a newer version wrote it."""
        try:
            return self._states.decode(value)
        except DECODE_ERRORS as e:
            raise Undecodable(f"the state of an operator cannot be read: {e}") from None

    @contextlib.contextmanager
    def extended(self, *more: type[AnyOperator]) -> Iterator[None]:
        """Add operators for as long as the context is open. For tests."""
        before = tuple(self.members.values())
        self._set((*before, *more))
        try:
            yield
        finally:
            self._set(before)


def _union_decoder(kinds: Sequence[type]) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(reduce(or_, kinds))


CATALOGUE = Catalogue(OPERATORS)


@lru_cache(maxsize=4096)
def resolve(packed: bytes, needs: tuple[str, ...]) -> ResolvedOperator:
    """Decode an operator of a Match. Raises Undecodable."""
    operator = CATALOGUE.decode_operator(packed)
    return ResolvedOperator(operator, operator_id(operator, needs))


def keyed_operator(operator: AnyOperator, key: str) -> KeyedOperator:
    """Return the stage of a Match."""
    return KeyedOperator(msgspec.Raw(encode(operator)), key)


def operator_id(operator: AnyOperator, needs: tuple[str, ...]) -> str:
    """Return the id under which states are stored.

    An operator whose options change starts afresh, unless it keeps its states; one that buffers
    events also does when the buffered values change.
    """
    if operator.KEEPS_STATES:
        return blake2b(operator.name().encode(), digest_size=8).hexdigest()
    values = encode(needs) if operator.BUFFERS else b""
    return blake2b(_identity(operator) + values, digest_size=8).hexdigest()


def _identity(operator: AnyOperator) -> bytes:
    """Return the operator as former versions stored it, if it is without new fields."""
    former = operator.FORMER
    if not former or operator != type(operator)(*msgspec.structs.astuple(operator)[:former]):
        return encode(operator)
    return encode([operator.name(), *msgspec.structs.astuple(operator)[:former]])
