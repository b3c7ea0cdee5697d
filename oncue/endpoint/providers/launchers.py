"""Launchers: programs that start one process on each node of a job.

    job's script (first node) ──launcher──► the request's command, once on each node

`{command}` is the command as one word of a shell, `{script}` a file that sets the variables first:
for launchers that do not pass the environment on. That file is in the endpoint's folder, which the
nodes must see then.
"""

from __future__ import annotations

import shlex

from oncue.endpoint.options.providers import Launcher

_EACH_HOST = """all= told=
trap "told=1; kill -TERM \\$all 2>/dev/null" TERM
for host in $(cut -d " " -f 1 "$PE_HOSTFILE" | sort -u); do
  qrsh -inherit -nostdin {options} "$host" /bin/bash "$0" & all="$all $!"
done
[ -z "$told" ] || kill -TERM $all 2>/dev/null
last=0
for each in $all; do
  while :; do wait "$each"; code=$?; kill -0 "$each" 2>/dev/null || break; done
  [ "$code" = 0 ] || last=$code
done
exit "$last" """

LAUNCHERS: dict[Launcher, str] = {
    "simple": "/bin/bash -c {command}",
    # --overlap: tasks may start steps of their own beside it. Without -c it has all cores.
    # --no-kill, --kill-on-bad-exit=0: a node that fails does not end the others.
    "srun": "srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 --overlap --cpu-bind=none --no-kill"
    " --kill-on-bad-exit=0 {options} /bin/bash -c {command}",
    # MPICH, Intel MPI, Cray PALS
    "mpiexec": "mpiexec -n {nodes} -ppn 1 {options} /bin/bash -c {command}",
    # Open MPI
    "mpirun": "mpirun -n {nodes} --map-by ppr:1:node --bind-to none {options} /bin/bash {script}",
    "aprun": "aprun -n {nodes} -N 1 -cc none {options} /bin/bash -c {command}",
    "jsrun": "jsrun --nrs {nodes} --rs_per_host 1 --tasks_per_rs 1 --cpu_per_rs ALL_CPUS --gpu_per_rs ALL_GPUS"
    " --bind none {options} /bin/bash -c {command}",
    "pbsdsh": "pbsdsh {options} -- /bin/bash {script}",
    "blaunch": 'blaunch {options} -z "$(sort -u "$LSB_DJOB_HOSTFILE" | tr "\\n" " ")" /bin/bash {script}',
    # Grid Engine: one qrsh a host of the parallel environment. TERM is handed on.
    "qrsh": f"/bin/bash -c '{_EACH_HOST}' {{script}}",
}
ONE_NODE: frozenset[Launcher] = frozenset({"simple"})


def launched(launcher: Launcher, command: str, script: str, nodes: int, options: str) -> str:
    """Return the shell command that runs `command`, or `script`, once on each node."""
    text = LAUNCHERS[launcher].format(
        command=shlex.quote(command), script=shlex.quote(script), nodes=nodes, options=options
    )
    return " ".join(text.split(" ")) if options else text.replace("  ", " ")


def needs_script(launcher: Launcher) -> bool:
    """Return True if the launcher does not pass the environment on."""
    return "{script}" in LAUNCHERS[launcher]
