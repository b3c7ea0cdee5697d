"""CEL compares and calculates with numbers of all types as people do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from oncue.errors import Invalid
from oncue.protocol.records import Event
from oncue.rules.matching.cel import compile_cel
from tests.unit.rules.matching.test_cel_cost import took

BEYOND = 1 << 70
HOLDS: list[tuple[str, Any]] = [
    ("2 == 2.0", {}),
    ("2 != 2.5 && 2.5 > 2 && 2 <= 2.0 && 3u > 2.5", {}),
    ("data.a == 2 && data.a == 2.0 && data.a == 2u", {"a": 2}),
    ("data.a == 2 && data.a == 2.0 && data.a == 2u", {"a": 2.0}),
    ("data.a == data.b", {"a": [1, {"x": 2}], "b": [1.0, {"x": 2.0}]}),
    ("[1, 2] == [1.0, 2.0] && [[1]] == [[1.0]]", {}),
    ("{'a': 1} == {'a': 1.0} && {1: 'a'} != {2: 'a'}", {}),
    ("2.0 in [1, 2] && data.a in [1.0, 2.0] && 2 in data.l", {"a": 2, "l": [2.0]}),
    ("1.0 in {1: 'a'} && {1: 'a'}[1.0] == 'a' && [5, 6][1.0] == 6", {}),
    ("data.names[data.n] == 'b'", {"names": ["a", "b"], "n": 1.0}),
    ("data.exposure_s * double(data.frames) > 60.0", {"exposure_s": 1, "frames": 100}),
    ("data.a + 0.5 == 2.5 && 0.5 + data.a == 2.5", {"a": 2}),
    ("data.a - 0.5 == 1.5 && data.a * 1.5 == 3 && data.a / 4.0 == 0.5", {"a": 2}),
    ("data.a + data.b == 3", {"a": 2, "b": 1.0}),
    ("data.a % 2 == 0 && 5.5 % 2 == 1.5 && -5.0 % 3 == -2", {"a": 4.0}),
    ("data.a / 2 == 1 && -7 / 2 == -3", {"a": 3}),  # of integers: as CEL has it
    ("data.a / 2 == 1.5", {"a": 3.0}),
    ("1 / 0.0 > 1e308 && -1 / 0.0 < -1e308 && 0 / 0.0 != 0", {}),
    ("size(data.l) > 1.5 && size(data.l) == 2.0", {"l": [1, 2]}),
    ("(size(data.l) > 1 ? 1 : 2.5) == 1.0", {"l": [1, 2]}),
    ("data.l.map(x, x * 2.0) == [2, 4]", {"l": [1, 2]}),
    ("data.l.exists(x, x == 2) && data.l.all(x, x < 3) && data.l.exists_one(x, x > 1.5)", {"l": [1.0, 2.0]}),
    ("data.l.filter(x, x > 1.5).size() == 1.0", {"l": [1, 2]}),
    ("data.a - 18446744073709551615u == -18446744073709551620.0", {"a": -5}),
    ("timestamp(data.t) + duration('1h') > timestamp('2026-01-01T00:30:00Z')", {"t": "2026-01-01T00:00:00Z"}),
    ("'a' + 'b' == 'ab' && 'a' < 'b' && b'a' == b'a' && true != false && null == null", {}),
    ("type(data.a) == double", {"a": 2.0}),
]


def event(data: Any) -> Event:
    return Event(id="1", source="/s", type="t", data=data)


@pytest.mark.parametrize(("text", "data"), HOLDS)
def test_numbers_of_different_types(text: str, data: Any) -> None:
    assert compile_cel(text).test(event(data)) is True


@pytest.mark.parametrize("text", ["2 == 'a'", "2 * 'a' == 3", "'a' < 2", "2 in ['a']", "true + 1 == 2", "-'a' == 2"])
def test_types_that_never_fit_are_still_errors_at_deploy(text: str) -> None:
    with pytest.raises(Invalid, match="no matching overload"):
        compile_cel(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("data.text * 2.0 > 1", "No matching overloads found"),
        ("data.a / 0u == 1", "division"),
        ("data.a % 0u == 1", "modulo"),
        ("data.large * data.large > 1", "overflow"),
    ],
)
def test_what_cannot_be_calculated_has_a_reason(text: str, reason: str) -> None:
    answer = compile_cel(text).test(event({"text": "x", "a": -5, "large": 1 << 62}))

    assert isinstance(answer, str)
    assert reason in answer


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("data.n == 1", {"n": 1, "elsewhere": BEYOND}),
        ("data.n == 1", {"n": 1, "deep": {"l": [[{"x": -BEYOND}]]}}),
        ("data.n > 1", {"n": BEYOND}),
        ("data.n > 9e18 && data.n == double(9223372036854775808u)", {"n": 1 << 63}),
        ("data.n > 1e308", {"n": 10**400}),
        ("data.n < -1e308", {"n": -(10**400)}),
        ("data > 1", BEYOND),
        ("data[0] > 1", [BEYOND]),
    ],
)
def test_integers_beyond_64_bits(text: str, data: Any) -> None:
    before = json.dumps(data)

    assert compile_cel(text).test(event(data)) is True
    assert json.dumps(data) == before  # other rules see the integers as they are


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("data.l.all(x, (x + 1.5) * 2.5 - 0.5 > 1.0)", {"l": list(range(9_000))}),
        ("data.l.all(x, data.l.all(y, x * 1.5 >= -1.0 || y > 0))", {"l": list(range(90))}),
        ("data.n == 1", {"n": 1, "l": [*range(50_000), BEYOND]}),
        ("data.n == 1", {"n": 1, "l": [*([] for _ in range(50_000)), BEYOND]}),
    ],
)
def test_the_bound_covers_mixed_arithmetic_and_large_integers(text: str, data: Any) -> None:
    condition, size = compile_cel(text), len(json.dumps(data, separators=(",", ":")))

    assert condition.longest()(size) > took(condition, data)
