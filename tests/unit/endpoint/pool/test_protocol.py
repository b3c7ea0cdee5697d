"""Frames between a pool and a worker: what is no message puts the channel out of step."""

from __future__ import annotations

import pytest

from oncue.endpoint.pool.protocol import ChunkResults, FrameReader, frame, pack
from oncue.protocol.codec import encode

DEEP = b"\x91" * 100_000 + b"\xc0"
DONE = encode("done") + encode(1)
FIELDS_OF_ENDED = b"".join(encode(value) for value in (b"i" * 16, 1, 0, 1, 1, b"", b"", None, b"", 0))


@pytest.mark.parametrize(
    "body",
    [
        b"\x95" + DONE + b"\x90" + encode(True) + DEEP,
        b"\x94" + DONE + b"\x91\xdc\x00\x0b" + FIELDS_OF_ENDED + DEEP + encode(True),
    ],
    ids=["results", "an ended attempt"],
)
def test_a_frame_that_is_nested_too_deeply_is_no_frame(body: bytes) -> None:
    """A function can write one: its unknown fields are skipped, and may be anything."""
    reader = FrameReader()

    reader.feed(frame(body) + pack(ChunkResults(2, [], True)))

    assert reader.messages() == [ChunkResults(2, [], True)]
    assert reader.out_of_step
