"""Waiting for a server's start: as long as it makes progress."""

from __future__ import annotations

import pytest

from oncue.cli.start_wait import await_start


def test_a_start_that_makes_progress_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    texts = iter(f"{n} %" for n in range(1_000))
    left = [True] * 8

    done = await_start(lambda: not left or not left.pop(), lambda: next(texts), patience_s=0.2)

    assert done


def test_a_start_without_progress_is_given_up() -> None:
    assert not await_start(lambda: False, lambda: "12 %", patience_s=0.1)
