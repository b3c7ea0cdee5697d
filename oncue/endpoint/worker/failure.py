"""Describes an exception: type, message, the user's lines of the traceback."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

from oncue.errors import OncueError
from oncue.functions.body import FunctionBody
from oncue.functions.remedies import remedy_for
from oncue.functions.siblings import short_path
from oncue.protocol.exceptions import class_name, to_data
from oncue.protocol.records import MRO_CLASSES, NAME_CHARS, TRACEBACK_BYTES, Failure

_OURS = str(Path(__file__).parents[2]) + "/"
_ASYNCIO = str(Path(traceback.__file__).parent / "asyncio") + "/"
_MESSAGE_CHARS = 4_000
_DATA_BYTES = 128 * 1024


def failure(error: BaseException, what: str = "", body: FunctionBody | None = None) -> Failure:
    """Return an exception as data.

    Raises nothing, whatever the exception's own methods do.
    """
    try:
        return _failure(error, what, body)
    except Exception as e:
        return Failure("Exception", f"(the exception cannot be shown: {type(e).__name__})")


def _failure(error: BaseException, what: str, body: FunctionBody | None) -> Failure:
    kind = type(error)
    name = class_name(kind)
    remedy = ""
    if isinstance(error, OncueError):
        name, message, remedy = f"oncue.{kind.__name__}", str(error.message), error.remedy
    else:
        message = _text(error)
        remedy = remedy_for(error, body)
    if what:
        message = f"{what}: {message}"
    # An error of oncue's own without a line of the user's: the traceback would repeat the message.
    lines = "" if remedy and isinstance(error, OncueError) and not _user_frames(error) else own_lines(error)
    exception = b"" if what or isinstance(error, OncueError) else _data(error)
    return Failure(
        _cut(name), _cut(message), lines, _cut(str(remedy)), exception, _exit_code(error), classes=_classes(kind)
    )


def _classes(kind: type) -> tuple[str, ...]:
    """Return the names of an exception's class and its bases, for retry policies."""
    bases = [base for base in kind.__mro__ if base is not object][:MRO_CLASSES]
    return tuple(_clean(class_name(base))[: 2 * NAME_CHARS] for base in bases)


def _exit_code(error: BaseException) -> int:
    """Return the code with which a program ended, as a shell shows it; -1 if none has."""
    if isinstance(error, SystemExit):
        return error.code & 0xFF if isinstance(error.code, int) else 1
    subprocess: Any = sys.modules.get("subprocess")
    if subprocess is not None and isinstance(error, subprocess.CalledProcessError):
        code: int = error.returncode
        return (128 - code if code < 0 else code) & 0xFF
    return -1


def _data(error: BaseException) -> bytes:
    """Return the exception for oncue.client; b"" if its class prevents it."""
    try:
        data = to_data(error)
    except BaseException:  # of the class's own methods: type, message and traceback remain
        return b""
    return data if len(data) <= _DATA_BYTES else b""


def _user_frames(error: BaseException, depth: int = 0) -> bool:
    frames = traceback.walk_tb(error.__traceback__)
    if any(not f.f_code.co_filename.startswith((_OURS, "<frozen importlib")) for f, _ in frames):
        return True
    return depth < 20 and error.__cause__ is not None and _user_frames(error.__cause__, depth + 1)


def _text(error: BaseException) -> str:
    try:
        return str(error)[: _MESSAGE_CHARS + 1]
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
    """Leave out oncue's frames, and asyncio's before the user's first."""
    own = [f for f in shown.stack if not f.filename.startswith((_OURS, "<frozen importlib"))]
    first = next((i for i, f in enumerate(own) if not f.filename.startswith(_ASYNCIO)), 0)
    for f in own:
        f.filename = short_path(f.filename)
    shown.stack[:] = own[first:]
    for chained in (shown.__cause__, shown.__context__, *(getattr(shown, "exceptions", None) or ())):
        if chained is not None and depth < 20:
            _strip(chained, depth + 1)


def _cut(text: str) -> str:
    clean = _clean(text[: _MESSAGE_CHARS + 1])
    return clean if len(clean) <= _MESSAGE_CHARS else clean[: _MESSAGE_CHARS - 1] + "…"


def _clean(text: str) -> str:
    """Return the text without lone surrogates, which UTF-8 does not have."""
    return text.encode("utf-8", "backslashreplace").decode()
