"""What `pip install 'oncue[server]'` adds. The plain `oncue` runs endpoints and the client, and does without it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.util import find_spec

from oncue.errors import MissingExtra

# distribution: the module that it brings. (uvloop is in that extra as well; a server does without it.)
SERVER: Mapping[str, str] = {
    "watchdog": "watchdog",
    "ruamel.yaml": "ruamel.yaml",
    "google-re2": "re2",
    "cel-expr-python": "cel_expr_python",
    "fsspec": "fsspec",
    "prometheus-client": "prometheus_client",
}
SERVER_PIP = "pip install 'oncue[server]'"
# `oncue stream` needs these as well.
STREAM: Mapping[str, str] = {"aiokafka": "aiokafka", "cramjam": "cramjam", "faust-streaming": "faust"}
STREAM_PIP = "pip install 'oncue[server,kafka]'"
# Of the server's, the ones that hardly anything else brings: where one is, somebody wanted a server.
TELLING = ("google-re2", "cel-expr-python")


def missing(libraries: Mapping[str, str]) -> list[str]:
    """The distributions of {distribution: module} whose module is not there. Nothing of them is run."""
    return [name for name, module in libraries.items() if not _there(module)]


def _there(module: str) -> bool:
    try:
        return module in sys.modules or find_spec(module) is not None
    except ModuleNotFoundError:  # of "ruamel.yaml", ruamel
        return False


def need(what: str, libraries: Mapping[str, str] = SERVER, pip: str = SERVER_PIP) -> None:
    """Before work of which those are a part. Raises MissingExtra, which names what is missing and the pip line."""
    if absent := missing(libraries):
        raise MissingExtra(f"{what} needs libraries that are not installed: {', '.join(absent)}", remedy=pip)
