"""Libraries of pip's extras, such as `oncue[server]`.

The plain install needs none of them: it runs endpoints and the client.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
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
SERVER_PIP = "pip install 'oncue[server]'"
# In addition for `oncue stream`.
STREAM: Mapping[str, str] = {"aiokafka": "aiokafka", "cramjam": "cramjam", "faust-streaming": "faust"}
STREAM_PIP = "pip install 'oncue[server,kafka]'"
# Libraries that few other packages depend on: if one is installed, a server is wanted.
TELLING = ("google-re2", "cel-expr-python")


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


def need(feature: str, libraries: Mapping[str, str] = SERVER, pip: str = SERVER_PIP) -> None:
    """Raise MissingExtra, with the pip command, if a library is missing."""
    if absent := missing(libraries):
        raise MissingExtra(f"{feature} needs libraries that are not installed: {', '.join(absent)}", remedy=pip)
