"""Launchers of MPI functions: the key `mpi:` of `endpoint.yaml`.

A launcher is a command line to which the command of each rank is added. `{...}` in it:

    {nodes} {ranks} {ranks_per_node}   numbers; the last one is of the fullest node
    {hosts}                            n1,n2
    {host_slots}                       n1:4,n2:4
    {hostfile}                         path of a file with one host a line
    {cores_per_rank}                   as the task's `cores` say, at least 1
    {slurm_cores}                      the same as options of srun
    {exports}                          -x NAME for each variable of the task
"""

from __future__ import annotations

import string
from difflib import get_close_matches

import msgspec

LOCAL = "local"
LAUNCHERS = {
    "srun": "srun --overlap --nodes={nodes} --ntasks={ranks} --ntasks-per-node={ranks_per_node} --nodelist={hosts}"
    " --kill-on-bad-exit=1 {slurm_cores}",
    # MPICH, MVAPICH, Intel MPI
    "mpiexec": "mpiexec -hosts {hosts} -n {ranks} -ppn {ranks_per_node}",
    # Open MPI
    "mpirun": "mpirun -n {ranks} --host {host_slots} {exports}",
    # Cray PALS
    "pals": "mpiexec --hosts {hosts} -n {ranks} --ppn {ranks_per_node}",
    "aprun": "aprun -n {ranks} -N {ranks_per_node} -L {hosts}",
    # On one machine, of any MPI
    LOCAL: "mpiexec -n {ranks}",
}
PLACEHOLDERS = (
    "nodes", "ranks", "ranks_per_node", "hosts", "host_slots", "hostfile", "cores_per_rank", "slurm_cores", "exports",
)  # fmt: skip


class MpiOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Launcher of MPI functions."""

    launcher: str = ""  # a name of LAUNCHERS, or a command line; "": by the provider
    options: str = ""  # added to its command line

    def __post_init__(self) -> None:
        if not self.launcher or self.launcher in LAUNCHERS:
            return
        if "{" not in self.launcher:
            near = get_close_matches(self.launcher, LAUNCHERS, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(LAUNCHERS)}"
            raise ValueError(
                f"launcher: {self.launcher[:60]!r} is no launcher; {hint}, or a command line with {{ranks}} and {{hosts}}"
            )
        names = _names(self.launcher)
        if wrong := [name for name in names if name not in PLACEHOLDERS]:
            raise ValueError(f"launcher: there is no {{{wrong[0]}}}; there are {', '.join(PLACEHOLDERS)}")
        if "ranks" not in names:
            raise ValueError("launcher: the command line has no {ranks}, so it would not say how many to start")


def _names(template: str) -> list[str]:
    try:
        return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as e:
        raise ValueError(f"launcher: {e}; write {{{{ for a brace of the command") from None


def mpi_launcher(options: MpiOptions, provider: object) -> str:
    """Return the launcher's command line, with its placeholders, for this provider."""
    named = options.launcher or _default(provider)
    extra = options.options.replace("{", "{{").replace("}", "}}")
    return f"{LAUNCHERS.get(named, named)} {extra}".strip()


def _default(provider: object) -> str:
    """Return the launcher that fits the one which starts the blocks' nodes."""
    of_nodes = getattr(provider, "launcher", None)
    if of_nodes is None:
        return LOCAL
    if of_nodes == "simple" and hasattr(provider, "partition"):
        return "srun"
    return of_nodes if of_nodes in LAUNCHERS else "mpiexec"
