"""Rule files and directories of `oncue deploy`, and their labels."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from oncue.cli.deploying.python_rules import DECORATED, is_python
from oncue.cli.output import say
from oncue.errors import Invalid

SUFFIXES = frozenset((".yaml", ".yml", ".py"))
_RULES = re.compile(rb"""^(?:\xef\xbb\xbf)?(?:---)?[{\s]*["']?(rules|triggers)["']?\s*:""", re.MULTILINE)


class LabelledFile(NamedTuple):
    """A rule file, and the name of its deployment."""

    path: str
    label: str


def labelled_files(given: Sequence[str], label: str) -> list[LabelledFile]:
    """Return the rule files of files and directories with their labels.

    A file's label is its name; in a directory, with the folders on the way. `label`: of a single
    file, its label; else the owner of them all, which stands before each: LABEL/NAME. Raises
    Invalid.
    """
    found = [file for path in given for file in (_of_folder(Path(path)) if os.path.isdir(path) else [_of_file(path)])]
    if label and (len(given) > 1 or os.path.isdir(given[0])):
        found = [LabelledFile(path, f"{label}/{name}") for path, name in found]
    elif label:
        found = [LabelledFile(found[0].path, label)]
    seen: dict[str, str] = {}
    for path, name in found:
        if seen.setdefault(name, path) != path:
            raise Invalid(
                f"{seen[name]} and {path} would both be the deployment {name!r}",
                remedy="rename one, or deploy them one after the other, each with a --label",
            )
    return list(dict.fromkeys(found))


def _of_file(path: str) -> LabelledFile:
    return LabelledFile(path, Path(path).stem)


def _of_folder(folder: Path) -> list[LabelledFile]:
    """Return the rule files below a folder in order. Raises Invalid if there are none."""
    found, others = [], []
    for path in _yaml_files(folder):
        relative = path.relative_to(folder).with_suffix("")
        if _has_rules(path):
            found.append(LabelledFile(str(path), "/".join(relative.parts)))
        elif not is_python(str(path)):
            others.append(str(path))
    if others:
        say(f"no rule files, since without `rules:` and `triggers:`: {', '.join(others)}", err=True)
    if not found:
        raise Invalid(f"there are no rule files below {folder}", remedy="it looks for *.yaml with rules: or triggers:")
    return found


def _yaml_files(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if Path(name).suffix in SUFFIXES and not name.startswith("."):
                yield Path(root, name)


def _has_rules(path: Path) -> bool:
    try:
        return (DECORATED if is_python(str(path)) else _RULES).search(path.read_bytes()) is not None
    except OSError as e:
        _unreadable(e)
        return False


def _unreadable(e: OSError) -> None:
    raise Invalid(f"{e.filename} cannot be read: {e.strerror}", remedy="let it be read, or name the files") from None
