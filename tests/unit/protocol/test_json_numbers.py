"""Numbers that take long to decode: refused if they are many; others are decoded as ever."""

from __future__ import annotations

import json
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncue.errors import Invalid
from oncue.protocol.cloudevents import decode_data, from_json
from oncue.protocol.json_numbers import LARGE_BYTES, MOST, check_numbers, float_of

DEAR = "1.234500000000000069278e300"  # between two doubles: 68 µs


def listed(number: str, count: int) -> bytes:
    return f"[{','.join([number] * count)}]".encode()


@pytest.mark.parametrize(
    "number", [DEAR, "0." + "0" * 300 + "1234567890123456789012345", "-1.23456789012345678901E-300"]
)
def test_a_few_are_taken_and_many_are_not(number: str) -> None:
    check_numbers(listed(number, 20))
    check_numbers(b'"' + listed(number, 20_000) + b'"')  # a text
    for count in (MOST + 1, 20_000):
        with pytest.raises(msgspec.ValidationError, match="as text"):
            check_numbers(listed(number, count))


def test_digits_of_integers_count() -> None:
    check_numbers(listed("1" * 4_000, 4))
    with pytest.raises(msgspec.ValidationError):
        check_numbers(listed("1" * 4_000, 6))


@pytest.mark.parametrize(
    "value",
    [
        [0.1234567890123456] * 20_000,
        [1.2345678901234567e-300] * 20_000,
        [f"{n / 7:.25e}" for n in range(20_000)],
        [0.00012345678901234567, 12345678901234567890] * 20_000,
        ["1" * 64, "x" + "0" * 64, "0" * 200_000] * 200,
        ["deadbeef" * 8] * 20_000,
    ],
    ids=["floats", "exponents", "text", "long", "texts", "hashes"],
)
def test_honest_numbers_and_texts_are_taken(value: list[object]) -> None:
    data = json.dumps(value).encode()
    assert len(data) > LARGE_BYTES
    check_numbers(data)
    assert decode_data(data, "application/json")[0] == value


def test_numbers_with_more_digits_than_floats_have_are_taken() -> None:
    data = f"[{','.join(f'{n / 7:.25e},{n / 7:.30f}' for n in range(20_000))}]".encode()
    check_numbers(data)
    assert decode_data(data, "application/json")[0][2:4] == [1 / 7, 1 / 7]


def test_events_say_what_is_wrong() -> None:
    many = listed(DEAR, 10_000)
    with pytest.raises(Invalid, match="send them as text"):
        decode_data(many, "application/json")
    with pytest.raises(Invalid, match="send them as text"):
        from_json(b'{"specversion":"1.0","id":"1","source":"/s","type":"t","data":' + many + b"}")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_of_large_values_are_the_same(number: float) -> None:
    decoder = msgspec.json.Decoder(float_hook=float_of)
    for text in (repr(number), f"{number:.25e}"):
        found = decoder.decode(text.encode())
        assert found == msgspec.json.decode(text.encode())
        assert math.copysign(1, found) == math.copysign(1, number)


@pytest.mark.parametrize("text", ["1e999", "-1e400", "1.5e309"])
def test_a_float_is_in_range(text: str) -> None:
    for decoder in (msgspec.json.Decoder(), msgspec.json.Decoder(float_hook=float_of)):
        with pytest.raises(msgspec.ValidationError, match="Number out of range"):
            decoder.decode(text.encode())
