"""Decoding of compressed bodies, within limits."""

from __future__ import annotations

import contextlib
import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncue.dispatcher.http.content_coding import RATIO, decompress
from oncue.errors import Malformed, TooLarge

LIMIT = 64 << 20


@given(st.binary(max_size=200_000), st.sampled_from(["gzip", "deflate"]))
def test_what_was_compressed_comes_back(data: bytes, coding: str) -> None:
    packed = gzip.compress(data) if coding == "gzip" else zlib.compress(data)
    assert decompress(packed, coding, LIMIT) == data


@given(st.binary(min_size=1, max_size=2_000), st.sampled_from(["gzip", "deflate"]))
def test_any_bytes_are_decoded_or_malformed(data: bytes, coding: str) -> None:
    with contextlib.suppress(Malformed):
        assert isinstance(decompress(data, coding, LIMIT), bytes)


@pytest.mark.parametrize("size", [100_000, 30_000_000])
def test_text_that_repeats_itself_is_taken(size: int) -> None:
    text = b"".join(b'{"n": %d, "name": "scan"},' % i for i in range(size // 26))
    assert decompress(gzip.compress(text), "gzip", LIMIT) == text


def test_zeros_are_not_taken_beyond_the_ratio() -> None:
    with pytest.raises(TooLarge) as caught:
        decompress(gzip.compress(bytes(8 << 20)), "gzip", LIMIT)
    assert caught.value.details == {"limit_ratio": RATIO}


def test_more_than_the_limit_is_not_returned() -> None:
    assert decompress(gzip.compress(bytes(5_000)), "gzip", 4_000) is None
