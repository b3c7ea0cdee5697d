"""Options of a provider: the keys of `provider:` in `endpoint.yaml`, by `kind`.

Each kind has its scheduler's own words (Slurm: partition, PBS: queue). The words of other
schedulers are known too: a wrong one is answered with the right one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from oncue.quantities import Duration, Size

Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
CountOrNone = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
#: Program that starts the pool on each node of a block; `simple` starts one, on the first node.
Launcher = Literal["srun", "mpiexec", "mpirun", "aprun", "jsrun", "pbsdsh", "blaunch", "qrsh", "simple"]


class LocalOptions(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="local"
):
    """Workers are children of the agent, on its own machine."""


class SlurmOptions(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="slurm"
):
    """Blocks are jobs of Slurm (sbatch)."""

    partition: str = ""  # "": the cluster's default
    account: str = ""
    qos: str = ""
    constraint: str = ""
    reservation: str = ""
    clusters: str = ""
    exclusive: bool = True  # whole nodes
    cores_per_node: CountOrNone = 0  # 0: left to the scheduler
    memory_per_node: Size = 0  # bytes; 0: left to the scheduler
    gpus_per_node: CountOrNone = 0
    scheduler_options: str = ""  # lines `#SBATCH ...` for the job's script
    worker_init: str = ""  # shell lines that run on the job's first node before the launcher
    launcher: Launcher = "srun"
    launcher_options: str = ""
    command_timeout_ms: Duration = msgspec.field(name="command_timeout", default=30_000)  # of sbatch, squeue ...
    OTHER_WORDS: ClassVar[Mapping[str, str]] = {"queue": "partition", "project": "account", "allocation": "account"}


class PbsProOptions(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="pbspro"
):
    """Blocks are jobs of PBS Professional or OpenPBS (qsub)."""

    queue: str = ""
    account: str = ""
    select_options: str = ""  # added to each chunk of `-l select=...`, such as ngpus=4
    cores_per_node: CountOrNone = 0
    memory_per_node: Size = 0
    gpus_per_node: CountOrNone = 0
    scheduler_options: str = ""  # lines `#PBS ...`
    worker_init: str = ""
    launcher: Launcher = "mpiexec"
    launcher_options: str = ""
    command_timeout_ms: Duration = msgspec.field(name="command_timeout", default=30_000)
    OTHER_WORDS: ClassVar[Mapping[str, str]] = {"partition": "queue", "project": "account", "allocation": "account"}

    def __post_init__(self) -> None:
        named = {part.partition("=")[0].strip() for part in self.select_options.split(":")}
        for resource, key in (("ncpus", "cores_per_node"), ("mem", "memory_per_node"), ("ngpus", "gpus_per_node")):
            if resource in named and getattr(self, key):
                raise ValueError(f"select_options: {resource} is given already by {key}; remove one of them")


class TorqueOptions(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="torque"
):
    """Blocks are jobs of Torque (qsub)."""

    queue: str = ""
    account: str = ""
    cores_per_node: CountOrNone = 0
    memory_per_node: Size = 0
    gpus_per_node: CountOrNone = 0
    scheduler_options: str = ""  # lines `#PBS ...`
    worker_init: str = ""
    launcher: Launcher = "pbsdsh"
    launcher_options: str = ""
    command_timeout_ms: Duration = msgspec.field(name="command_timeout", default=30_000)
    OTHER_WORDS: ClassVar[Mapping[str, str]] = {"partition": "queue", "project": "account", "allocation": "account"}


class LsfOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="lsf"):
    """Blocks are jobs of IBM Spectrum LSF (bsub)."""

    queue: str = ""
    project: str = ""
    request_by_nodes: bool = True  # -nnodes; false: -n cores, as smaller clusters want it
    cores_per_node: CountOrNone = 0
    memory_per_node: Size = 0
    gpus_per_node: CountOrNone = 0
    scheduler_options: str = ""  # lines `#BSUB ...`
    worker_init: str = ""
    launcher: Launcher = "jsrun"
    launcher_options: str = ""
    command_timeout_ms: Duration = msgspec.field(name="command_timeout", default=30_000)
    OTHER_WORDS: ClassVar[Mapping[str, str]] = {"partition": "queue", "account": "project", "allocation": "project"}


class GridEngineOptions(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="gridengine"
):
    """Blocks are jobs of Grid Engine (qsub)."""

    queue: str = ""
    project: str = ""
    parallel_environment: str = ""  # for blocks of several nodes
    cores_per_node: CountOrNone = 0
    memory_per_node: Size = 0
    gpus_per_node: CountOrNone = 0
    scheduler_options: str = ""  # lines `#$ ...`
    worker_init: str = ""
    launcher: Launcher = "simple"
    launcher_options: str = ""
    command_timeout_ms: Duration = msgspec.field(name="command_timeout", default=30_000)
    OTHER_WORDS: ClassVar[Mapping[str, str]] = {
        "partition": "queue",
        "account": "project",
        "allocation": "project",
        "pe": "parallel_environment",
    }


class CondorOptions(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="condor"
):
    """Blocks are jobs of HTCondor (condor_submit)."""

    project: str = ""
    requirements: str = ""  # ClassAd expression
    cores_per_node: CountOrNone = 0  # of a slot
    memory_per_node: Size = 0
    gpus_per_node: CountOrNone = 0
    scheduler_options: str = ""  # lines of the submit file
    python: str = ""  # on the nodes; "": the agent's own path
    worker_init: str = ""
    launcher: Launcher = "simple"
    launcher_options: str = ""
    command_timeout_ms: Duration = msgspec.field(name="command_timeout", default=30_000)
    OTHER_WORDS: ClassVar[Mapping[str, str]] = {"account": "project", "allocation": "project"}


class KubernetesOptions(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="kubernetes"
):
    """Blocks are Jobs of Kubernetes, one pod a node."""

    image: str  # it has oncue and the functions' libraries
    namespace: str = "default"
    service_account: str = ""
    image_pull_secret: str = ""
    node_selector: dict[str, str] = {}
    #: Name of a PersistentVolumeClaim: folder where its pods see it.
    volumes: dict[str, str] = {}
    cores_per_node: CountOrNone = 0  # requested, and the limit
    memory_per_node: Size = 0
    gpus_per_node: CountOrNone = 0
    python: str = "python3"  # in the image
    worker_init: str = ""
    command_timeout_ms: Duration = msgspec.field(name="command_timeout", default=30_000)
    OTHER_WORDS: ClassVar[Mapping[str, str]] = {"secret": "image_pull_secret", "persistent_volumes": "volumes"}


class ParslOptions(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="parsl"
):
    """Blocks are jobs of a provider of Parsl: clouds, and what else has none here."""

    name: str  # AWSProvider, AzureProvider, GoogleCloudProvider ...
    options: dict[str, Any] = {}  # its own, as Parsl's documentation names them
    python: str = ""  # on the nodes; "": the agent's own path
    worker_init: str = ""
    launcher: str = "SimpleLauncher"  # Parsl's
    command_timeout_ms: Duration = msgspec.field(name="command_timeout", default=120_000)
    OTHER_WORDS: ClassVar[Mapping[str, str]] = {"provider": "name", "class": "name"}


ProviderOptions = (
    LocalOptions
    | SlurmOptions
    | PbsProOptions
    | TorqueOptions
    | LsfOptions
    | GridEngineOptions
    | CondorOptions
    | KubernetesOptions
    | ParslOptions
)


def kind_of(options: ProviderOptions) -> str:
    """Return the `kind` of these options."""
    return str(options.__struct_config__.tag)
