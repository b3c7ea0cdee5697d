"""MPI functions: a script that a launcher starts in each rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from oncue.errors import Invalid
from oncue.functions.body import Packed
from oncue.functions.shell.pack import pack_shell, spec_of
from oncue.protocol.stated_options import run_options


def mpi(
    script: str,
    *,
    nodes: int = 0,
    ranks: int = 0,
    env: Mapping[str, str] | None = None,
    cwd: str = "",
    interpreter: str = "",
    sandbox: bool | str = False,
    outputs: Sequence[str] = (),
    resources: Mapping[str, Any] | None = None,
    name: str = "",
) -> Packed:
    """Return an MPI function, to be submitted or registered as other functions are.

        solve = oncue.mpi("./solver ${input}", nodes=2, ranks=64)
        client.submit(solve, input="/data/a.h5").result().stdout

    The endpoint's launcher (srun, mpiexec ...) starts the script once a rank, on whole nodes of one
    block if `nodes` is more than 1. Without `ranks` there is one on each node. In all else it is as
    oncue.shell. Raises Invalid.
    """
    spec = spec_of(script, env, cwd, interpreter, bool(sandbox))
    stated = {**(resources or {}), **{key: n for key, n in (("nodes", nodes), ("ranks", ranks)) if n}}
    return pack_shell(spec, run_options(stated, sandbox, outputs, in_cwd=bool(cwd)), name, mpi=True)


def is_for_workers(*_: Any, **__: Any) -> None:
    """Stand for an MPI function in its pickle. A worker starts the ranks itself."""
    raise Invalid("an MPI function is run by an endpoint", remedy="submit it: client.submit(function, ...)")
