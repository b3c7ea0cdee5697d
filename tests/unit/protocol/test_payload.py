"""Arguments and results as bytes: what comes back is what went, and the same thing twice is the same thing twice."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from oncue.errors import CannotPack, Undecodable
from oncue.protocol.codec import encode
from oncue.protocol.payload import (
    MSGPACK,
    PICKLE,
    REF,
    has_plain_types,
    is_plain,
    pack,
    pack_args,
    pack_args_apart,
    ref_of,
    unpack,
    unpack_args,
)

PLAIN: dict[str, Any] = {
    "scalars": [None, True, 1, -1.5, "x", b"x"],
    "limits": [-(1 << 63), (1 << 64) - 1],
    "nested": {"a": [[1], [1]], "b": {"c": {}}, "d": {"c": {}}},
    "equal lists": [[], [], {}, {}],
    "one immutable thing twice": ["long text" * 9] * 2 + [b"x" * 99] * 2,
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_values_are_msgpack(name: str) -> None:
    value = PLAIN[name]
    assert is_plain(value)
    assert pack(value)[:1] == MSGPACK
    assert unpack(pack(value)) == value


def _of_a_subclass() -> Any:
    class Mine(dict):  # type: ignore[type-arg]
        pass

    return [Mine(a=1)]


@pytest.mark.parametrize("value", [(1,), {1}, [1 << 64], {1: 2}, bytearray(b"x"), [[(1,)]], _of_a_subclass()])
def test_what_msgpack_would_change_is_a_pickle(value: Any) -> None:
    assert not is_plain(value)
    assert not has_plain_types(value)
    assert pack(value)[:1] == PICKLE
    assert unpack(pack(value)) == value


def test_one_list_twice_is_one_list_twice() -> None:
    row = [0]
    for value in ([row, row], {"a": row, "b": {"c": row}}, [[[row]], [row]]):
        assert has_plain_types(value)
        assert not is_plain(value)
    first, second = unpack(pack([row, row]))
    assert first is second
    box: dict[str, int] = {}
    found = unpack(pack({"a": box, "b": [box]}))
    assert found["a"] is found["b"][0]


def test_what_holds_itself_comes_back_so() -> None:
    ring: list[Any] = [1]
    ring.append(ring)
    found = unpack(pack(ring))
    assert found[1] is found
    loop: dict[str, Any] = {}
    loop["me"] = {"again": loop}
    again = unpack(pack(loop))
    assert again["me"]["again"] is again


def test_too_deep_for_msgpack_is_a_pickle() -> None:
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    assert unpack(pack(deep)) == deep


@pytest.mark.parametrize("packer", [pack_args, lambda args, kwargs: pack_args_apart(args, kwargs).body])
def test_the_argument_that_cannot_be_shipped_is_named(packer: Any) -> None:
    with pytest.raises(CannotPack, match=r"^argument 2: a _thread.lock cannot travel"):
        packer((1, threading.Lock()), {"x": 3})
    with pytest.raises(CannotPack, match=r"^argument x: element 0 is a _thread.lock, which cannot travel"):
        packer((1,), {"x": [threading.Lock()]})


@pytest.mark.parametrize("packer", [pack_args, lambda args, kwargs: pack_args_apart(args, kwargs).body])
def test_arguments_may_share(packer: Any) -> None:
    shared: list[int] = []
    (a, b), _ = unpack_args(packer((shared, shared), {}))
    assert a is b
    (a,), kwargs = unpack_args(packer((shared,), {"more": [shared]}))
    assert kwargs["more"][0] is a
    _, kwargs = unpack_args(packer((), {"x": shared, "y": shared}))
    assert kwargs["x"] is kwargs["y"]
    (a, b), _ = unpack_args(packer(([], []), {}))
    assert a is not b


def test_what_came_as_data_has_no_identity() -> None:
    """Two places of a rule's arguments that take the same list of an event."""
    row = [1, {"x": 2}]
    packed = pack([row, row], as_data=True)
    assert packed[:1] == MSGPACK
    assert unpack(packed) == [row, row]


@pytest.mark.parametrize(("read", "letter"), [(unpack, MSGPACK), (unpack, REF), (ref_of, REF)])
def test_what_is_nested_too_deeply_is_undecodable(read: Any, letter: bytes) -> None:
    """A reference's unknown fields, of a newer version, are skipped; they may be anything."""
    deep = b"\x94" + encode("a" * 64) + encode(5) + encode("") + b"\x91" * 100_000 + b"\xc0"
    with pytest.raises(Undecodable):
        read(letter + deep)
