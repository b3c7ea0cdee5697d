"""Finds dicts in msgpack whose keys are not texts, before they are decoded.

Keys of a dict may have equal hashes. Those of texts cannot be predicted; those of lists and numbers
can, and a dict of 12,000 lists with one hash takes 4 s, in one call that holds the interpreter.
"""

from __future__ import annotations

# Bytes of the content after a first byte, where that says how many.
_FIXED = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_FIXED |= {0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17} | {0xA0 + size: size for size in range(32)}
# Bytes of the length of the content, and of a type that the content has besides.
_SIZED = {0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1)}
_SIZED |= {0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0)}
_MAP16, _MAP32 = 0xDE, 0xDF
_COUNTED = {0xDC: 2, 0xDD: 4, _MAP16: 2, _MAP32: 4}  # bytes of the number of items


def has_text_keys(data: bytes) -> bool:
    """Return False if a dict of more than 15 items has a key that is not a text.

    What follows a fault is not looked at: nor is it decoded.
    """
    if _MAP16 not in data and _MAP32 not in data:
        return True  # all dicts are small
    return _scan(data)


def _scan(data: bytes) -> bool:
    at, left, in_map = 0, 1, False  # in a map, an even number of keys and values is left before a key
    outer: list[tuple[int, bool]] = []
    while at < len(data):
        while not left:
            if not outer:
                return True
            left, in_map = outer.pop()
        first = data[at]
        if in_map and not left & 1 and not (0xA0 <= first <= 0xBF or 0xD9 <= first <= 0xDB):
            return False
        left -= 1
        at += 1
        if first < 0x80 or first >= 0xE0:
            continue
        if (width := _COUNTED.get(first)) is not None:
            outer.append((left, in_map))
            left, in_map = int.from_bytes(data[at : at + width], "big"), first >= _MAP16
            left, at = 2 * left if in_map else left, at + width
        elif first < 0xA0:
            outer.append((left, in_map))
            left, in_map = 2 * (first & 15) if first < 0x90 else first & 15, False  # small maps may have any keys
        elif (sized := _SIZED.get(first)) is not None:
            width, more = sized
            at += width + more + int.from_bytes(data[at : at + width], "big")
        else:
            at += _FIXED.get(first, 0)
    return True
