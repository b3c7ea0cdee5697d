"""The module `__main__` of a function of a script or notebook, in a worker.

`multiprocessing` looks the script's names up in `__main__`: in the worker, to pickle them by name,
and in a child. A child by fork has the worker's `__main__`. One by spawn or forkserver runs the
file `__main__.__file__`: here one that loads the function again and takes its names.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import os
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from oncue.functions.body import FunctionBody
from oncue.functions.siblings import root, write_file
from oncue.protocol.codec import encode

BLANK = types.ModuleType("__main__")
_STUB = "from oncue.functions.load import names_of\nglobals().update(names_of({!r}))\n"


def main_module(call: Callable[..., Any], body: FunctionBody) -> types.ModuleType:
    """Return the module `__main__` for this function; an empty one if it was imported."""
    names = globals_of(call)
    if names is None or body.portable:
        return BLANK
    module = types.ModuleType("__main__", names.get("__doc__"))

    def lookup(name: str) -> Any:
        if name == "__file__":
            return _stub(body)
        if name in names:
            return names[name]
        if name == body.qualname:
            return call
        raise AttributeError(f"module '__main__' has no attribute {name!r}")

    module.__dict__["__getattr__"] = lookup
    return module


def globals_of(call: Any) -> dict[str, Any] | None:
    """Return the global variables of the function behind a callable, or None."""
    while isinstance(call, functools.partial):
        call = call.func
    with contextlib.suppress(ValueError):  # wrapped in a circle
        call = inspect.unwrap(call)
    if not isinstance(call, types.FunctionType | types.MethodType):
        members = vars(call if isinstance(call, type) else type(call)).values()
        call = next((m for m in members if isinstance(m, types.FunctionType)), None)
    return getattr(call, "__globals__", None)


def _stub(body: FunctionBody) -> str:
    """Write the files for children that do not fork; return the path of the script."""
    data = encode(body)
    folder = Path(root(), f"main-{hashlib.sha256(data).hexdigest()[:32]}")
    write_file(folder / "body", data)
    write_file(folder / "main.py", _STUB.format(str(folder / "body")).encode())
    return str(folder / "main.py")


def script_file(body: FunctionBody, folder: str) -> str:
    """Write the source that was sent to a file of its script's name; return the path.

    Return "" for a function of a notebook or prompt. Raises OSError.
    """
    if not re.fullmatch(r"[^<>/]+\.py", body.file):
        return ""
    folder = folder or os.path.join(root(), f"script-{hashlib.sha256(body.source.encode()).hexdigest()[:32]}")
    path = Path(folder, body.file)
    if not path.exists():
        write_file(path, body.source.encode())
    return str(path)
