"""`functions.lock` of an exported directory: hashes of functions.

A deploy of the directory takes them for functions whose Python file is not there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from oncue.errors import Invalid

NAME = "functions.lock"
OWN = re.compile(r"(.+\.py):([\w.]+)")  # a function in a Python file beside the rule file
Locks = dict[str, dict[str, str]]  # name of a rule file in the directory -> function -> hash


def write_locks(folder: Path, locks: Locks) -> None:
    text = msgspec.json.format(msgspec.json.encode(locks, order="sorted"), indent=2)
    (folder / NAME).write_bytes(text + b"\n")


def locked_functions(given: Sequence[str], files: Sequence[str]) -> dict[tuple[str, str], str]:
    """Return the hashes of functions without a Python file, by rule file and name.

    `given`: files and directories of the command line; `files`: the rule files in them. Raises
    Invalid.
    """
    found: dict[tuple[str, str], str] = {}
    for folder in (Path(path) for path in given if os.path.isdir(path)):
        locks = _read(folder / NAME)
        for path in files:
            name = str(Path(path).relative_to(folder).with_suffix("")) if Path(path).is_relative_to(folder) else ""
            for function, content in locks.get(name, {}).items():
                own = OWN.fullmatch(function)
                if own and not (Path(path).parent / own[1]).exists():
                    found[path, function] = content
    return found


def _read(path: Path) -> Mapping[str, Mapping[str, str]]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Locks)
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as e:
        raise Invalid(f"{path} cannot be read: {e}", remedy="`oncue rules export` writes it anew") from None
