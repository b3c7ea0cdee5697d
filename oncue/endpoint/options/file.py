"""Reader of `endpoint.yaml` in an endpoint's folder.

Strict, as rule files are: unknown keys, wrong types and values that contradict each other are
errors with line, column and the nearest right word, all at once.
"""

from __future__ import annotations

from pathlib import Path

from oncue.endpoint.options.options import EndpointOptions
from oncue.errors import EndpointFileError, Invalid
from oncue.strict_yaml.document import FileKind, Node, Problems, read
from oncue.strict_yaml.structs import convert

NAME = "endpoint.yaml"
PLACEHOLDER = "CHANGE-ME"  # of values that only the user knows, in files that `configure` wrote
ENDPOINT_FILE = FileKind(
    EndpointFileError,
    "endpoint files",
    "`oncue endpoint configure NAME` writes one with all keys explained",
    "an endpoint file has a few lines only",
)


def load_options(folder: Path) -> EndpointOptions:
    """Return the options in the folder's `endpoint.yaml`; defaults if there is none.

    Raises EndpointFileError for all faults at once, Invalid if the file cannot be read.
    """
    path = folder / NAME
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return EndpointOptions()
    except OSError as e:
        raise Invalid(f"{path} cannot be read: {e.strerror}", remedy="make it readable, or remove it") from None
    return parse_options(text, str(path))


def parse_options(text: str | bytes, file: str) -> EndpointOptions:
    """Return the options in this text of an `endpoint.yaml`. Raises EndpointFileError."""
    with Problems(file, kind=ENDPOINT_FILE) as problems:
        root = read(text, problems)
        options = None
        if root is not None and not isinstance(root.value, dict):
            problems.add(root, f"an endpoint file is a mapping, not {root.kind()}", ENDPOINT_FILE.content)
        elif root is not None:
            _check_completed(root, problems)
            options = convert(root, set(), EndpointOptions, problems)
        problems.check()
    return options or EndpointOptions()


def _check_completed(node: Node, problems: Problems, key: str = "the value") -> None:
    """Report values that are still placeholders."""
    if isinstance(node.value, dict):
        for name, value in node.value.items():
            _check_completed(value, problems, name)
    elif isinstance(node.value, str) and node.value.startswith(PLACEHOLDER):
        problems.add(node, f"{key} is still {PLACEHOLDER}", f"write your {key} there, or remove the line")
