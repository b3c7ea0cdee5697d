"""Catalogue of providers of jobs, by the kind in `endpoint.yaml`.

A new scheduler is its module, its options in `options/providers.py`, and one line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from oncue.endpoint.options.providers import ProviderOptions, kind_of
from oncue.endpoint.providers.condor import CondorProvider
from oncue.endpoint.providers.gridengine import GridEngineProvider
from oncue.endpoint.providers.job_files import JobFiles
from oncue.endpoint.providers.jobs import JobProvider
from oncue.endpoint.providers.kubernetes import KubernetesProvider
from oncue.endpoint.providers.lsf import LsfProvider
from oncue.endpoint.providers.parsl_provider import ParslProvider
from oncue.endpoint.providers.pbs import pbspro, torque
from oncue.endpoint.providers.slurm import SlurmProvider

#: Each takes its options, the files of the jobs, and the environment of its commands.
JOB_PROVIDERS: dict[str, Callable[[Any, JobFiles, Mapping[str, str] | None], JobProvider]] = {
    "slurm": SlurmProvider,
    "pbspro": pbspro,
    "torque": torque,
    "lsf": LsfProvider,
    "gridengine": GridEngineProvider,
    "condor": CondorProvider,
    "kubernetes": KubernetesProvider,
    "parsl": ParslProvider,
}


def job_provider(options: ProviderOptions, folder: Path, environ: Mapping[str, str] | None = None) -> JobProvider:
    """Return the provider of these options, for the endpoint in this folder.

    Raises KeyError if the kind has no jobs (local), MissingExtra if it needs a library that is not
    installed, OSError if its folder cannot be made.
    """
    return JOB_PROVIDERS[kind_of(options)](options, JobFiles(folder / "jobs"), environ)
