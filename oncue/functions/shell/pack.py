"""Packs shell functions."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from oncue.errors import Invalid
from oncue.functions.body import FunctionBody, Packed, describe
from oncue.functions.shell.spec import ShellSpec, check_spec
from oncue.protocol.codec import encode
from oncue.protocol.records import NAME_CHARS, VERSION
from oncue.protocol.run_options import RunOptions
from oncue.protocol.stated_options import run_options

#: A pickle by name: an endpoint whose oncue knows no shell functions says which module it lacks.
_BY_NAME = b"concue.functions.shell.pack\nis_for_workers\n."
_MPI_BY_NAME = b"concue.functions.shell.mpi\nis_for_workers\n."
_DOC_CHARS = 4_000
_FIRST_WORD = re.compile(r"(?:\s|#[^\n]*\n|[\w.]+=\S*\s)*(?:\S*/)?([\w.+-]{1,40})")


def shell(
    script: str,
    *,
    env: Mapping[str, str] | None = None,
    cwd: str = "",
    interpreter: str = "",
    sandbox: bool | str = False,
    outputs: Sequence[str] = (),
    resources: Mapping[str, Any] | None = None,
    name: str = "",
) -> Packed:
    """Return a shell function, to be submitted or registered as other functions are.

        count = oncue.shell("wc -l ${path}")
        client.submit(count, path="/data/a.txt").result().stdout

    `${path}` is the value of that keyword: always one word, never code. Other `$` are the shell's.
    The exit code decides: 0 is a success.

    `env`: variables. `cwd`: working directory. `interpreter`: by default bash, else sh. `sandbox`:
    a folder of the task's own; "keep": it stays if the task fails. `outputs`: globs of files in it
    that come back. `resources`: cores, memory, gpus, nodes, ranks, walltime. `name`: by default the
    first word of the script with a hash. Raises Invalid.
    """
    spec = spec_of(script, env, cwd, interpreter, bool(sandbox))
    return pack_shell(spec, run_options(resources, sandbox, outputs, in_cwd=bool(cwd)), name)


def spec_of(script: str, env: Mapping[str, str] | None, cwd: str, interpreter: str, sandboxed: bool) -> ShellSpec:
    """Return a script and in what it runs, checked. Raises Invalid."""
    if not isinstance(script, str):
        raise Invalid(f"a shell script is a text, not a {type(script).__name__}", remedy='"wc -l ${path}"')
    spec = ShellSpec(script, {str(k): str(v) for k, v in (env or {}).items()}, str(cwd), interpreter)
    if cwd and sandboxed:
        raise Invalid("both cwd and sandbox are given", remedy="a sandbox is the working directory: leave one out")
    check_spec(spec, ())
    return spec


def used_names(packed: Packed, names: Collection[str]) -> set[str]:
    """Return those of these names that a shell function uses. Raises Invalid."""
    spec = describe(packed.body).script
    return check_spec(spec, names) if spec is not None else set(names)


def pack_shell(spec: ShellSpec, options: RunOptions | None = None, name: str = "", *, mpi: bool = False) -> Packed:
    """Pack a script; with `mpi`, one that runs in each rank. Raises Invalid.

    The same script has the same id, whoever packs it.
    """
    label = name or f"{first_word(spec.script)}-{_digest(spec, options)}"
    if len(label) > NAME_CHARS:
        raise Invalid(f"the name has {len(label):,} characters; at most {NAME_CHARS}", remedy="use a shorter one")
    body = encode(
        FunctionBody(
            v=VERSION,
            name=label,
            qualname=label,
            module="",
            python="",
            source=spec.script,
            pickle=_MPI_BY_NAME if mpi else _BY_NAME,
            siblings={},
            requires=(),
            oncue="",
            portable=True,
            run=options,
            shell=None if mpi else spec,
            mpi=spec if mpi else None,
        )
    )
    digest = hashlib.sha256(body).hexdigest()
    return Packed(digest, body, label, "(**values)", spec.script[:_DOC_CHARS], "")


def first_word(script: str) -> str:
    """Return the program that a script runs first, for people."""
    found = _FIRST_WORD.match(script)
    return found[1] if found else "shell"


def _digest(spec: ShellSpec, options: RunOptions | None) -> str:
    return hashlib.sha256(msgspec.msgpack.encode((spec, options))).hexdigest()[:8]


def is_for_workers(*_: Any, **__: Any) -> None:
    """Stand for a shell function in its pickle. A worker runs the script itself."""
    raise Invalid("a shell function is run by an endpoint", remedy="submit it: client.submit(function, ...)")
