"""Progress bars in output: lines that are written again after a carriage return."""

from __future__ import annotations


def last_states(text: bytes) -> bytes:
    """Return the text with the last state of each line, as a terminal shows it.

    An unfinished line keeps a carriage return at its end, so that text may follow.
    """
    if b"\r" not in text:
        return text
    *lines, last = text.split(b"\n")
    kept = [_last_state(line.rstrip(b"\r")) for line in lines]
    end = b"\r" if last.endswith(b"\r") else b""
    return b"\n".join([*kept, _last_state(last.rstrip(b"\r")) + end])


def _last_state(line: bytes) -> bytes:
    return line[line.rfind(b"\r") + 1 :]


def continuation(shown: bytes, now: bytes) -> bytes:
    """Return what to write after `shown` so that `now` is shown.

    Both are last states. A last line that has changed is written again after a carriage return.
    """
    if now.startswith(shown):
        return now[len(shown) :]
    kept = shown.rfind(b"\n") + 1
    if now.startswith(shown[:kept]):
        return b"\r" + now[kept:]
    return b"\n" + now
