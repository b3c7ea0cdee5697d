"""Keys whose hashes are equal in every process: those of integers and lists of them are not secret."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator

import msgspec

_P1, _P2, _P5 = 11400714785074694791, 14029467366897019727, 2870177450012600261  # of CPython's xxHash of tuples
_BITS = (1 << 64) - 1


def integers(count: int) -> list[int]:
    """Return integers with one hash."""
    return [7 + (n + 1) * sys.hash_info.modulus for n in range(count)]


def pairs(count: int) -> list[tuple[int, int]]:
    """Return tuples of two 64-bit integers, with one hash."""
    found = _pairs()
    return [next(found) for _ in range(count)]


def packed_dict(count: int) -> bytes:
    """Return a dict in msgpack whose keys are lists; tuples with one hash when they are decoded."""
    entries = (msgspec.msgpack.encode(pair) + b"\xc0" for pair in pairs(count))
    return b"\xdf" + struct.pack(">I", count) + b"".join(entries)


def _pairs() -> Iterator[tuple[int, int]]:
    wanted = (123_456_789 - (2 ^ (_P5 ^ 3527539))) & _BITS
    before = _rotated(wanted * pow(_P1, -1, 1 << 64) & _BITS, 33)
    first = 0
    while True:
        first += 1
        lane = _rotated((_P5 + first * _P2) & _BITS, 31) * _P1 & _BITS
        second = (before - lane) * pow(_P2, -1, 1 << 64) & _BITS
        signed = second - (1 << 64) if second >> 63 else second
        if abs(signed) < sys.hash_info.modulus and signed != -1:  # such an integer is its own hash
            yield first, signed


def _rotated(number: int, by: int) -> int:
    return ((number << by) | (number >> (64 - by))) & _BITS
