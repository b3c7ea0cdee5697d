"""Directives of job scripts, beside those that Parsl writes for the same schedulers."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from string import Template

import pytest

from oncue.endpoint.options.providers import (
    GridEngineOptions,
    LsfOptions,
    PbsProOptions,
    ProviderOptions,
    SlurmOptions,
    TorqueOptions,
)
from oncue.endpoint.providers.job_catalog import job_provider
from oncue.endpoint.providers.jobs import JobRequest, SchedulerError

MARK = "oncue-ab12-1"
REQUEST = JobRequest(MARK, "true", nodes=2, walltime_s=5400, cores=8, memory=16 << 30, gpus=4)
CASES: dict[str, tuple[ProviderOptions, str, str, set[str]]] = {
    "slurm": (
        SlurmOptions(
            partition="p", account="a", qos="q", constraint="c", reservation="r", scheduler_options="#SBATCH -x"
        ),
        "slurm",
        "#SBATCH",
        {
            "--partition=p",
            "--account=a",
            "--qos=q",
            "--constraint=c",
            "--reservation=r",
            "--nodes=2",
            "--ntasks-per-node=1",
            "--cpus-per-task=8",
            "--mem=16384M",
            "--gpus-per-node=4",
            "--time=90",
            "--exclusive",
            "--no-kill",
            "-x",
        },
    ),
    "pbspro": (
        PbsProOptions(queue="q", account="a", select_options="system=polaris"),
        "pbspro",
        "#PBS",
        {
            "-q q",
            "-A a",
            "-l select=2:ncpus=8:mem=16384mb:ngpus=4:system=polaris",
            "-l place=scatter",
            "-l walltime=01:30:00",
        },
    ),
    "torque": (
        TorqueOptions(queue="q", account="a"),
        "torque",
        "#PBS",
        {"-q q", "-A a", "-l nodes=2:ppn=8:gpus=4", "-l mem=32768mb", "-l walltime=01:30:00"},
    ),
    "lsf": (
        LsfOptions(queue="q", project="p"),
        "lsf",
        "#BSUB",
        {"-q q", "-P p", "-nnodes 2", "-W 90", '-R "rusage[mem=16384MB]"', '-gpu "num=4"'},
    ),
    "gridengine": (
        GridEngineOptions(queue="q", project="p", parallel_environment="mpi", launcher="qrsh"),
        "grid_engine",
        "#$",
        {"-q q", "-P p", "-pe mpi 16", "-l h_rt=01:30:00", "-l h_vmem=16384M", "-l gpu=4"},
    ),
}
#: What Parsl writes and we give on the command line, or do not want.
ELSEWHERE = {"--job-name", "-N", "-J", "-cwd"}


def script(options: ProviderOptions, folder: Path) -> str:
    """Return the job's script, which no scheduler takes: its commands are not in PATH."""
    with pytest.raises(SchedulerError, match="cannot be started"):
        job_provider(options, folder, {"PATH": "/nonexistent"}).submit(REQUEST)
    return (folder / "jobs" / f"{MARK}.sh").read_text()


def directives(text: str, prefix: str) -> list[str]:
    return [line.removeprefix(prefix).strip() for line in text.splitlines() if line.startswith(prefix)]


@pytest.mark.parametrize("kind", CASES)
def test_all_that_is_asked_for_is_in_the_script(kind: str, tmp_path: Path) -> None:
    options, _, prefix, expected = CASES[kind]

    found = directives(script(options, tmp_path), prefix)

    assert expected <= set(found)
    paths = [line for line in found if str(tmp_path) in line]
    assert [Path(re.split("[ =]", line)[-1]).name for line in paths] == [f"{MARK}.out", f"{MARK}.err"]


@pytest.mark.parametrize("kind", CASES)
def test_every_directive_of_parsl_is_in_the_script_too(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("parsl", reason="needs Parsl; pip install -r requirements/dev.txt")
    options, folder, prefix, _ = CASES[kind]
    template = importlib.import_module(f"parsl.providers.{folder}.template").template_string
    theirs = Template(template).safe_substitute()

    ours = {names(line) for line in directives(script(options, tmp_path), prefix)}

    for line in directives(theirs, prefix):
        assert names(line) in ours or names(line) in ELSEWHERE, line


def names(directive: str) -> str:
    """Return a directive without its value: --time=5 is --time, -l walltime=5 is -l walltime."""
    return re.split("[=:]", directive)[0] if directive.startswith(("--", "-l ")) else directive.split()[0]
