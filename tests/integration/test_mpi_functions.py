"""MPI functions on one machine, in real workers."""

from __future__ import annotations

from pathlib import Path

from oncue.endpoint.worker.mpi_run import LAUNCHER
from oncue.functions.shell.mpi import mpi
from oncue.protocol.payload import unpack
from oncue.protocol.records import OK, REFUSED
from tests.integration.test_shell_functions import run
from tests.pool_rig import rig_in, why

#: Starts the command after its options once a rank, as a launcher of one machine does.
MPIEXEC = """\
#!/bin/sh
ranks=$2; shift 2; n=0
while [ $n -lt "$ranks" ]; do PMI_RANK=$n "$@" || exit $?; n=$((n + 1)); done
"""


def test_ranks_run_on_this_machine(tmp_path: Path) -> None:
    program = tmp_path / "mpiexec"
    program.write_text(MPIEXEC)
    program.chmod(0o755)
    with rig_in(tmp_path / "endpoint", workers=2, environment={LAUNCHER: f"{program} -n {{ranks}}"}) as rig:
        ended = run(rig, mpi('echo "$ONCUE_RANK of $ONCUE_RANKS: "${x}', ranks=2), x="a; b")

    assert ended.status == OK, why(ended)
    assert unpack(ended.value)["stdout"] == "0 of 2: a; b\n1 of 2: a; b\n"


def test_without_a_launcher_an_mpi_function_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with rig_in(tmp_path / "endpoint", environment={LAUNCHER: "no-such-mpiexec -n {ranks}"}) as rig:
        ended = run(rig, mpi("echo never"))

    assert ended.status == REFUSED
    assert "no no-such-mpiexec here: install an MPI" in why(ended).message
