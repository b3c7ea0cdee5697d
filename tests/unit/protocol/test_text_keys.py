"""Keys of dicts in msgpack: only texts, because others may have hashes that somebody has chosen."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oncue.errors import Undecodable
from oncue.protocol.payload import MSGPACK, peek, unpack
from oncue.protocol.text_keys import has_text_keys
from tests.colliding import packed_dict

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(1 << 63), (1 << 64) - 1), st.floats(), st.text(max_size=70))
SCALARS |= st.binary(max_size=300) | st.just("x" * 70_000) | st.datetimes(timezones=st.timezones(no_cache=True))
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=40)
        | st.dictionaries(st.text(max_size=40) | st.integers(0, 9), inner, max_size=40)
        | st.lists(inner, max_size=3).map(lambda items: {f"{n}": n for n in range(16)} | {"in": items})
    ),
    max_leaves=30,
)


def all_texts(value: Any) -> bool:
    if isinstance(value, dict):
        bad = len(value) > 15 and not all(isinstance(key, str) for key in value)
        return not bad and all(map(all_texts, value.values()))
    return not isinstance(value, list) or all(map(all_texts, value))


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_it_is_said_of_every_value(value: Any) -> None:
    assert has_text_keys(msgspec.msgpack.encode(value)) == all_texts(value)


@pytest.mark.parametrize("at", [0, -1])
@pytest.mark.parametrize("key", [5, 1.5, None, True, b"x", (1, 2), 1 << 40])
def test_no_other_key_passes(key: Any, at: int) -> None:
    keys: list[Any] = [f"k{n}" for n in range(20)]
    keys[at] = key
    found = msgspec.msgpack.encode([["x" * 300, {"a": dict.fromkeys(keys)}]])

    assert not has_text_keys(found)
    assert not has_text_keys(found + b"rest")


@given(st.binary(max_size=200))
def test_any_bytes_will_do(data: bytes) -> None:
    has_text_keys(b"\xdf" + data)


def test_chosen_keys_are_not_decoded_for_display() -> None:
    small = MSGPACK + packed_dict(1_000)
    assert len({hash(key) for key in unpack(small)}) == 1  # that is the attack
    began = time.process_time()
    with pytest.raises(Undecodable, match="keys that are no texts"):
        peek(MSGPACK + packed_dict(20_000))
    assert time.process_time() - began < 5  # it takes 10 s to decode them
