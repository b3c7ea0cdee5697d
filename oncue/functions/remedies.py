"""Advice on errors of a function at an endpoint: each cause has its own remedy."""

from __future__ import annotations

import os
import sys

from oncue.functions.body import FunctionBody
from oncue.functions.siblings import active_folder

#: Packages to install whose name is not the module's.
_PIP_NAMES = {
    "PIL": "pillow",
    "cv2": "opencv-python",
    "yaml": "pyyaml",
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "bs4": "beautifulsoup4",
    "dateutil": "python-dateutil",
    "zmq": "pyzmq",
    "tomopy": "tomopy (conda-forge)",
}


def pip_line(module: str) -> str:
    """Return the command that installs a module for the worker's Python."""
    top = module.split(".")[0]
    return f"{sys.executable} -m pip install {_PIP_NAMES.get(top, top)}"


def remedy_for(error: BaseException, body: FunctionBody | None) -> str:
    """Return advice on an error of a function, or of its import; "" without any."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return _missing_module(error.name, body)
    if isinstance(error, FileNotFoundError) and isinstance(error.filename, str):
        return _missing_file(error.filename, body)
    if isinstance(error, MemoryError):
        return "the worker has no more memory: use smaller pieces, or fewer workers on that machine"
    return ""


def _missing_module(name: str, body: FunctionBody | None) -> str:
    compiled = body.compiled if body is not None else {}
    if name in compiled:
        return compiled_remedy(compiled[name])
    return f"on the endpoint: {pip_line(name)}"


def compiled_remedy(file: str) -> str:
    """Return advice on a compiled module of the user's that did not travel."""
    return (
        f"{file} is a compiled module of yours, which travels only if it is named: "
        f"@oncue.function(files=[{file!r}]), for an endpoint with the same system and Python; else install it there"
    )


def _missing_file(name: str, body: FunctionBody | None) -> str:
    folder = active_folder()
    if folder and os.path.abspath(name).startswith(folder + os.sep):
        inside = os.path.relpath(os.path.abspath(name), folder)
        return f"files beside a function travel only if they are named: @oncue.function(files=[{inside!r}])"
    if not os.path.isabs(name):
        beside = ", and open it beside __file__" if body is None or body.file.endswith(".py") else ""
        return (
            f"the path is relative to the worker's folder {os.getcwd()}; give an absolute path of the endpoint, or let "
            f"the file travel, @oncue.function(files=[{name!r}]){beside}"
        )
    return "the endpoint's machine has no such path; does the file exist only where the function was submitted?"
