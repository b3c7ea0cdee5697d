"""Stored operators, states and matches keep the bytes that earlier versions wrote."""

from __future__ import annotations

import msgspec
import pytest

from oncue.errors import Undecodable
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import VERSION
from oncue.rules.operators.batch import BatchOperator, BatchState
from oncue.rules.operators.catalog import CATALOGUE, keyed_operator, operator_id, resolve
from oncue.rules.operators.dedupe import DedupeOperator, DedupeState
from oncue.rules.operators.records import BufferedEvent, KeyedOperator, Match
from oncue.rules.stateful.fold import check_operators

BATCH, DEDUPE = BatchOperator("${k}", 3, 5, 7), DedupeOperator("${k}", 25)
STORED = [
    (BATCH, "95a56261746368a4247b6b7d030507"),
    (DEDUPE, "93a6646564757065a4247b6b7d19"),
    (BatchState(4, 1, 2, 3, 4, 5, 6, 7, "l", 2, ("x",)), "9ca562617463680401020304050607a16c0291a178"),
    (BatchState(1), "9ca562617463680100000000000000a00090"),
    (DedupeState(1, 2, 3, 4), "95a664656475706501020304"),
]
OLDEST_MATCH = (
    "99a56d6174636801a172a166010a929293a6646564757065a4247b6b7d19a1619295a56261746368a4247b6b7d030507a16291a6646174612e6e"
    "96ffa22f73a131c40291010506"
)
# Name and depth, keys of limiters; expected events, limiters.
MATCH = OLDEST_MATCH.replace("99a5", "9ba5", 1).replace("96ff", "99ff", 1) + "a000c0" + "9090"


@pytest.mark.parametrize(("value", "stored"), STORED)
def test_operators_and_states_are_stored_as_before(value: msgspec.Struct, stored: str) -> None:
    decoded = CATALOGUE.decode_state if isinstance(value, BatchState | DedupeState) else CATALOGUE.decode_operator
    assert encode(value).hex() == stored
    assert decoded(bytes.fromhex(stored)) == value


def test_a_match_is_stored_as_before() -> None:
    event = BufferedEvent(-1, "/s", "1", b"\x91\x01", 5, 6)
    match = Match(
        VERSION, "r", "f", 1, 10, (keyed_operator(DEDUPE, "a"), keyed_operator(BATCH, "b")), ("data.n",), event
    )
    assert encode(match).hex() == MATCH
    assert decode(Match, bytes.fromhex(OLDEST_MATCH)) == decode(Match, bytes.fromhex(MATCH))
    stages = decode(Match, bytes.fromhex(OLDEST_MATCH)).stages
    assert [resolve(bytes(s.operator), ("data.n",)).operator for s in stages] == [DEDUPE, BATCH]


def test_ids_of_operators_are_as_before_and_those_of_buffers_depend_on_the_values() -> None:
    assert operator_id(BATCH, ("x",)) == "37c740a1e29133c0"
    assert operator_id(BATCH, ()) == "a5edb4ae998387df"
    assert operator_id(DEDUPE, ("x",)) == operator_id(DEDUPE, ()) == "6d3273e4ca620327"


def test_an_operator_of_a_newer_version_is_refused() -> None:
    unknown = KeyedOperator(msgspec.Raw(encode(["newest", "${k}"])), "a")
    match = Match(VERSION, "r", "f", 1, 10, (unknown,), (), BufferedEvent(-1, "/s", "1", b"\x90"))
    with pytest.raises(Undecodable, match="the operator cannot be read"):
        check_operators(decode(Match, encode(match)))
