"""A token bucket: bursts, the average, and steps of the clock."""

from __future__ import annotations

from oncue.dispatcher.token_bucket import TokenBucket


def test_it_fills_up_again_and_survives_clock_steps() -> None:
    bucket = TokenBucket(2, 1)
    assert [bucket.take(1, 1e9) for _ in range(3)] == [True, True, False]
    assert bucket.take(1, 1e9 + 1)
    assert not bucket.take(1, 5)
    assert bucket.take(1, 6.1)


def test_it_says_when_there_is_enough_and_when_it_is_full() -> None:
    bucket = TokenBucket(10, 2)
    assert not bucket.take(11, 100)
    assert bucket.take(10, 100)
    assert not bucket.take(4, 101)
    assert bucket.wait_s(4) == 1
    assert not bucket.is_full(105)
    assert bucket.is_full(106)
