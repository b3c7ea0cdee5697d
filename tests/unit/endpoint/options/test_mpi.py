"""Launchers of MPI functions, and the command lines that they become."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from oncue.endpoint.options.file import parse_options
from oncue.endpoint.options.mpi import LAUNCHERS
from oncue.endpoint.worker.mpi_run import (
    Layout,
    launch_words,
    layout_of,
    missing_launcher,
    rank_script,
    ranks_environment,
)
from oncue.errors import EndpointFileError
from oncue.protocol.run_options import Resources, RunOptions

PAIR = Layout(("n1", "n2"), 6, 0)
HOSTFILE = Path("/tmp/hosts")


def line(text: str, layout: Layout = PAIR, cpus: int = 0) -> str:
    return shlex.join(launch_words(text, layout, HOSTFILE, ("ONCUE_TASK",), cpus))


def launcher(yaml: str) -> str:
    return parse_options(yaml, "endpoint.yaml").mpi_launcher


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "srun",
            "srun --overlap --nodes=2 --ntasks=6 --ntasks-per-node=3 --nodelist=n1,n2 --kill-on-bad-exit=1"
            " --exact --cpus-per-task=1",
        ),
        ("mpiexec", "mpiexec -hosts n1,n2 -n 6 -ppn 3"),
        ("mpirun", "mpirun -n 6 --host n1:3,n2:3 -x ONCUE_TASK"),
        ("pals", "mpiexec --hosts n1,n2 -n 6 --ppn 3"),
        ("aprun", "aprun -n 6 -N 3 -L n1,n2"),
        ("local", "mpiexec -n 6"),
    ],
)
def test_each_launcher_starts_the_ranks_on_the_nodes(name: str, said: str) -> None:
    assert line(LAUNCHERS[name]) == said


def test_srun_gets_the_cores_of_each_rank() -> None:
    srun = LAUNCHERS["srun"]

    assert line(srun, Layout(("n1", "n2"), 4, 8)).endswith("--exact --cpus-per-task=4")
    assert line(srun, PAIR, cpus=12).endswith("--exact --cpus-per-task=4")
    assert line(srun, PAIR, cpus=2).endswith("--overcommit")


def test_the_launcher_follows_the_provider() -> None:
    assert launcher("provider: {kind: local}") == LAUNCHERS["local"]
    assert launcher("provider: {kind: slurm}") == LAUNCHERS["srun"]
    assert launcher("provider: {kind: slurm, launcher: simple}") == LAUNCHERS["srun"]
    assert launcher("provider: {kind: pbspro, launcher: mpirun}") == LAUNCHERS["mpirun"]
    assert launcher("provider: {kind: torque}") == LAUNCHERS["mpiexec"]


def test_a_file_names_a_launcher_or_a_command_line() -> None:
    named = launcher("mpi: {launcher: mpirun, options: '--mca {x}'}")

    assert line(named).endswith("--mca '{x}'")
    assert line(launcher("mpi: {launcher: 'run -p {ranks} -f {hostfile}'}")) == "run -p 6 -f /tmp/hosts"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("mpirum", "did you mean mpirun"),
        ("run -p {rank}", "there is no {rank}"),
        ("run {hosts}", "has no {ranks}"),
        ("run {ranks", "launcher"),
    ],
)
def test_a_wrong_launcher_is_refused_with_the_reason(given: str, reason: str) -> None:
    with pytest.raises(EndpointFileError, match=reason):
        launcher(f"mpi: {{launcher: '{given}'}}")


def test_without_a_reservation_ranks_are_on_this_node() -> None:
    found = layout_of(RunOptions(Resources(ranks=3)), {"SLURMD_NODENAME": "n7"})

    assert (found.hosts, found.ranks) == (("n7",), 3)


def test_a_launcher_that_is_not_here_says_what_to_install() -> None:
    assert "there is no no-such-mpi here: install an MPI" in missing_launcher("no-such-mpi -n {ranks}")
    assert missing_launcher("sh -c {ranks}") == ""


def test_ranks_do_not_see_the_layout_of_an_outer_launcher() -> None:
    outer = {"SLURM_NTASKS_PER_NODE": "1", "SLURM_PROCID": "0", "PMI_RANK": "0", "SLURM_JOB_ID": "7", "HOME": "/h"}
    gpus = {"CUDA_VISIBLE_DEVICES": "1", "ONCUE_ALL_CUDA_VISIBLE_DEVICES": "0,1"}

    found = ranks_environment(outer | gpus)

    assert found == {"SLURM_JOB_ID": "7", "HOME": "/h", "CUDA_VISIBLE_DEVICES": "0,1", "SLURM_OVERLAP": "1"}


def test_a_rank_knows_its_number_and_the_script_is_left_as_it_is() -> None:
    assert rank_script("echo hi").endswith("; echo hi")
