"""Describes an exception: type, message, the user's lines of the traceback."""

from __future__ import annotations

import traceback
from pathlib import Path

from oncue.errors import OncueError
from oncue.functions.load import pip_line
from oncue.protocol.records import TRACEBACK_BYTES, Failure

_OURS = str(Path(__file__).parents[2]) + "/"
_MESSAGE_CHARS = 4_000


def failure(error: BaseException, what: str = "") -> Failure:
    """Return an exception as data.

    Raises nothing, whatever the exception's own methods do.
    """
    kind = type(error)
    name = (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )
    remedy = ""
    if isinstance(error, OncueError):
        name, message, remedy = f"oncue.{kind.__name__}", error.message, error.remedy
    else:
        message = _text(error)
        if isinstance(error, ModuleNotFoundError) and error.name:
            remedy = f"on the endpoint: {pip_line(error.name)}"
        elif isinstance(error, MemoryError):
            remedy = "the worker has no more memory: use smaller pieces, or fewer workers on that machine"
    if what:
        message = f"{what}: {message}"
    # An error of oncue's own without a line of the user's: the traceback would repeat the message.
    lines = "" if remedy and isinstance(error, OncueError) and not _user_frames(error) else own_lines(error)
    return Failure(name, _cut(message), lines, remedy)


def _user_frames(error: BaseException) -> bool:
    frames = traceback.walk_tb(error.__traceback__)
    if any(not f.f_code.co_filename.startswith((_OURS, "<frozen importlib")) for f, _ in frames):
        return True
    return error.__cause__ is not None and _user_frames(error.__cause__)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as e:
        return f"(its message cannot be shown: {type(e).__name__})"


def own_lines(error: BaseException) -> str:
    """Return the traceback and its causes without oncue's frames.

    At most TRACEBACK_BYTES.
    """
    try:
        shown = traceback.TracebackException.from_exception(error, compact=True)
        _strip(shown, 0)
        text = "".join(shown.format())
    except BaseException as e:
        return f"(its traceback cannot be shown: {type(e).__name__})"
    data = text.encode("utf-8", "backslashreplace")
    if len(data) > TRACEBACK_BYTES:
        half = TRACEBACK_BYTES // 2 - 50
        data = data[:half] + b"\n  [... lines left out ...]\n" + data[-half:]
    return data.decode("utf-8", "replace")


def _strip(shown: traceback.TracebackException, depth: int) -> None:
    own = [f for f in shown.stack if not f.filename.startswith((_OURS, "<frozen importlib"))]
    shown.stack[:] = own
    for chained in (shown.__cause__, shown.__context__, *(getattr(shown, "exceptions", None) or ())):
        if chained is not None and depth < 20:
            _strip(chained, depth + 1)


def _cut(text: str) -> str:
    clean = text.encode("utf-8", "backslashreplace").decode()
    return clean if len(clean) <= _MESSAGE_CHARS else clean[: _MESSAGE_CHARS - 1] + "…"
