"""Progress bars in output."""

from __future__ import annotations

import pytest

from oncue.text.progress import continuation, last_states


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"plain\nlines\n", b"plain\nlines\n"),
        (b"\r 0%\r 50%\r100%\nend\n", b"100%\nend\n"),
        (b"10%\r20%\r", b"20%\r"),
        (b"windows\r\nlines\r\n", b"windows\nlines\n"),
        (b"a\rb\nc\rd\ne", b"b\nd\ne"),
        (b"", b""),
        (b"\r", b"\r"),
    ],
)
def test_a_line_has_its_last_state(text: bytes, expected: bytes) -> None:
    assert last_states(text) == expected


def test_pieces_give_the_same_as_the_whole() -> None:
    whole = b"start\n" + b"".join(b"\r%3d%%" % n for n in range(101)) + b"\nnext 1\rnext 2\r\nend"
    for size in (1, 2, 3, 7, 64):
        text = b""
        for at in range(0, len(whole), size):
            text = last_states(text + whole[at : at + size])
        assert text == last_states(whole)


def test_what_is_shown_becomes_what_is() -> None:
    shown = b""
    written = b""
    for now in (b"a\n", b"a\n10%", b"a\n20%", b"a\n20%\nb", b"a\n20%\nb\n"):
        written += continuation(shown, now)
        shown = now
    assert written == b"a\n10%\r20%\nb\n"
    assert continuation(b"a\nb", b"other") == b"\nother"
