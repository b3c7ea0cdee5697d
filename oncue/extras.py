"""Libraries of pip's extras, such as `oncue[server]`.

The plain install needs none of them: it runs endpoints and the client.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec

from oncue.errors import MissingExtra

# distribution: its module. (uvloop is in the extra as well, but a server also runs without it.)
SERVER: Mapping[str, str] = {
    "watchdog": "watchdog",
    "PyYAML": "yaml",
    "ruamel.yaml": "ruamel.yaml",
    "google-re2": "re2",
    "cel-expr-python": "cel_expr_python",
    "fsspec": "fsspec",
    "prometheus-client": "prometheus_client",
}
# In addition for `oncue stream`.
STREAM: Mapping[str, str] = {"aiokafka": "aiokafka", "cramjam": "cramjam", "faust-streaming": "faust"}
DEMO: Mapping[str, str] = {"numpy": "numpy", "h5py": "h5py", "pillow": "PIL"}
# For providers of jobs by Parsl.
HPC: Mapping[str, str] = {"parsl": "parsl"}
# For `oncue history export`.
HISTORY: Mapping[str, str] = {"sqlite-utils": "sqlite_utils"}
PARQUET: Mapping[str, str] = {"pyarrow": "pyarrow"}
# Libraries that few other packages depend on: if one is installed, a server is wanted.
TELLING = ("google-re2", "cel-expr-python")
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*([^;\[]*)")


def missing(libraries: Mapping[str, str]) -> list[str]:
    """Return the distributions that are not installed, without an import.

    `libraries` is {distribution: module}.
    """
    return [name for name, module in libraries.items() if not _installed(module)]


def _installed(module: str) -> bool:
    try:
        return module in sys.modules or find_spec(module) is not None
    except ModuleNotFoundError:  # the parent: of "ruamel.yaml", ruamel
        return False


def pip_install(names: Iterable[str]) -> str:
    """Return the command that installs these libraries for this Python.

    It names libraries, not extras of oncue: pip finds `oncue[server]` only where oncue itself came
    from (a checkout, an index).
    """
    from importlib.metadata import PackageNotFoundError, requires  # on use: it imports much

    known = {}
    try:
        for text in requires("oncue") or ():
            if found := _REQUIREMENT.match(text):
                known[found[1]] = found[1] + found[2].strip()
    except PackageNotFoundError:  # run from a folder, without an installation
        pass
    return shlex.join([sys.executable, "-m", "pip", "install", *(known.get(name, name) for name in names)])


def need(feature: str, libraries: Mapping[str, str] = SERVER) -> None:
    """Raise MissingExtra, with the pip command, if a library is missing."""
    if absent := missing(libraries):
        raise MissingExtra(
            f"{feature} needs libraries that are not installed: {', '.join(absent)}", remedy=pip_install(absent)
        )
