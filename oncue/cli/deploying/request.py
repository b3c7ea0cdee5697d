"""Request of a deploy: the rule files, tested, with their functions packed."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from oncue.cli.deploying.lock_file import locked_functions
from oncue.cli.deploying.paths import labelled_files
from oncue.cli.deploying.python_rules import written_lines
from oncue.cli.deploying.values import Values
from oncue.errors import Invalid
from oncue.protocol.api import DeployRequest, RuleFile

if TYPE_CHECKING:
    from oncue.functions import Packed


class Prepared(NamedTuple):
    """A dry run's request, and the functions to register before."""

    request: DeployRequest
    packed: Mapping[str, Packed]
    paths: Mapping[str, str]  # label -> file, as it was given


def prepare(files: Sequence[str], label: str, values: Values, *, prune: bool, note: str, replace: bool) -> Prepared:
    """Read the files, run their tests, pack their functions.

    Raises RuleFileError, Invalid, MissingExtra and others.
    """
    from oncue.cli.rule_files import check_packed, pack_functions, read, run_tests, show_tests

    if prune and not (label and (len(files) > 1 or os.path.isdir(files[0]))):
        raise Invalid(
            "--prune removes what a label owns, and no owner is named",
            remedy="give a directory or several files, and --label OWNER: each file is deployed as OWNER/NAME",
        )
    labelled = labelled_files(files, label)
    sets = read([file.path for file in labelled], values)
    show_tests(run_tests(sets))
    locked = locked_functions(files, [file.path for file in labelled])
    with written_lines():
        packed = pack_functions(sets, locked)
        check_packed(sets, packed)
    # Absolute, since relative paths in a rule file are relative to its folder, not to the server's.
    host = socket.gethostname()
    request = DeployRequest(
        files=[
            RuleFile(label=file.label, text=s.text, path=os.path.abspath(s.file), host=host)
            for file, s in zip(labelled, sets, strict=True)
        ],
        functions={name: content for (_, name), content in locked.items()} | {n: p.id for n, p in packed.items()},
        dry_run=True,
        note=note,
        replace=replace,
        prune=label if prune else "",
    )
    return Prepared(request, packed, {file.label: file.path for file in labelled})
