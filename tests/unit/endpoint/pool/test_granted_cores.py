"""A pool counts the cores that it was granted, not those of the machine."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from oncue.endpoint.pool.granted_cores import granted_cores

HERE = socket.gethostname()
SGE = {"SGE_ROOT": "/sge", "JOB_ID": "7"}


@pytest.mark.parametrize(
    ("environ", "cores"),
    [
        ({}, None),
        ({"ONCUE_NODE_CORES": "4"}, 4),
        ({"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "8"}, 8),
        ({"SLURM_CPUS_ON_NODE": "8"}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "8", "ONCUE_NODE_CORES": "6"}, 6),
        (SGE | {"NSLOTS": "3"}, 3),
        (SGE | {"NSLOTS": "3", "NHOSTS": "2"}, None),
        ({"NSLOTS": "3"}, None),
        ({"PBS_JOBID": "7.pbs", "NCPUS": "16"}, 16),
        ({"PBS_JOBID": "7.pbs", "PBS_NUM_PPN": "8"}, 8),
        ({"NCPUS": "16"}, None),
        ({"LSB_JOBID": "7", "LSB_MCPU_HOSTS": f"other 4 {HERE} 12"}, 12),
        ({"LSB_JOBID": "7", "LSB_MCPU_HOSTS": "other 4"}, None),
        ({"_CONDOR_MACHINE_AD": "/nowhere"}, None),
        ({"ONCUE_NODE_CORES": "0"}, None),
        ({"ONCUE_NODE_CORES": "many", "SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": ""}, None),
    ],
)
def test_variables_of_a_scheduler_limit_the_cores(environ: dict[str, str], cores: int | None) -> None:
    assert granted_cores(environ) == cores


def test_slots_of_this_host_are_in_the_host_file(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text(f"other 2 all.q@other UNDEFINED\n{socket.gethostname()}.example.org 5 all.q@x UNDEFINED\n\n")

    assert granted_cores(SGE | {"NSLOTS": "7", "NHOSTS": "2", "PE_HOSTFILE": str(file)}) == 5


@pytest.mark.parametrize(("quota", "cores"), [(2.0, 2), (2.5, 2), (0.5, 1)])
def test_the_quota_of_a_container_limits_them_too(quota: float, cores: int) -> None:
    assert granted_cores({}, quota) == cores
    assert granted_cores({"ONCUE_NODE_CORES": "1"}, quota) == 1


def test_the_cores_of_a_condor_slot_are_in_its_description(tmp_path: Path) -> None:
    ad = tmp_path / "machine.ad"
    ad.write_text('Machine = "x"\nTotalCpus = 64\nCpus = 6\nDetectedCpus = 64\n')

    assert granted_cores({"_CONDOR_MACHINE_AD": str(ad)}) == 6
