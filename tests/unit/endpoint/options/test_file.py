"""`endpoint.yaml` is read strictly: every fault has its place and the right word."""

from __future__ import annotations

from pathlib import Path

import pytest

from oncue.endpoint.options.file import load_options, parse_options
from oncue.endpoint.options.options import EndpointOptions, LimitOptions
from oncue.endpoint.options.providers import LocalOptions, SlurmOptions, kind_of
from oncue.errors import EndpointFileError, Invalid
from oncue.quantities import Rate

WHOLE = """
provider: {kind: slurm, partition: debug, account: m1234, memory_per_node: 240GB, exclusive: false,
           scheduler_options: "#SBATCH --comment=x", worker_init: "module load python", command_timeout: 1m}
blocks: {min: 1, max: 4, initial: 2, nodes: 2, walltime: 1:30:00, idle: 5m}
workers: {memory: 8GB, gpus: 1, pin: gpus}
limits: {node_hours: 200/week, pending_blocks: 3, submits: 10/h, failed_blocks: 2}
network: {interface: hsn0, port: 54000}
environment: {OMP_NUM_THREADS: 4, MODE: fast}
pass_env: [HF_TOKEN]
max_tasks: 100
max_memory: 2 GiB
threads: 2
grace: 30s
spool: 1GB
debuggable: true
"""


def problems(text: str) -> list[str]:
    """Return the faults of the text as `line:column: message (remedy)`."""
    with pytest.raises(EndpointFileError) as e:
        parse_options(text, "endpoint.yaml")
    assert str(e.value).startswith("endpoint.yaml:")
    found = e.value.details["problems"]
    return [f"{p['line']}:{p['column']}: {p['message']}" + (f" ({p['remedy']})" * bool(p["remedy"])) for p in found]


def test_each_key_is_read() -> None:
    options = parse_options(WHOLE, "endpoint.yaml")

    assert isinstance(options.provider, SlurmOptions)
    assert (options.provider.partition, options.provider.exclusive) == ("debug", False)
    assert (options.provider.memory_per_node, options.provider.command_timeout_ms) == (240_000_000_000, 60_000)
    assert (options.blocks.min, options.blocks.max, options.blocks.initial, options.blocks.nodes) == (1, 4, 2, 2)
    assert (options.blocks.walltime_ms, options.blocks.idle_ms) == (5_400_000, 300_000)
    assert (options.workers.memory, options.workers.gpus, options.workers.pin) == (8_000_000_000, 1, "gpus")
    assert options.limits == LimitOptions(
        node_hours=Rate(200, 604_800_000), pending_blocks=3, submits=Rate(10, 3_600_000), failed_blocks=2
    )
    assert (options.network.interface, options.network.port) == ("hsn0", 54_000)
    assert options.environment == {"OMP_NUM_THREADS": 4, "MODE": "fast"}
    assert (options.max_tasks, options.max_memory, options.threads) == (100, 2 << 30, 2)
    assert (options.grace_ms, options.spool_bytes, options.debuggable) == (30_000, 10**9, True)


def test_without_a_file_the_defaults_hold(tmp_path: Path) -> None:
    options = load_options(tmp_path)

    assert options == EndpointOptions()
    assert kind_of(options.provider) == "local"
    assert isinstance(options.provider, LocalOptions)


def test_a_file_that_cannot_be_read_is_an_error_not_a_default(tmp_path: Path) -> None:
    (tmp_path / "endpoint.yaml").mkdir()

    with pytest.raises(Invalid, match=r"endpoint\.yaml cannot be read"):
        load_options(tmp_path)


def test_all_faults_are_reported_at_once_with_place_and_nearest_word() -> None:
    text = (
        "provider: {kind: slurm, queue: x, launcher: jrun}\n"
        "blocks: {maxx: 3, min: x, nodes: 0, walltime: 90:00}\n"
        "limits: {submits: 6}\n"
        "workers: {pin: gpu}\n"
        "max_tasks: -1\n"
        "network: []\n"
        "thread: 1\n"
    )

    assert problems(text) == [
        "1:25: provider has no key 'queue' (did you mean 'partition'?)",
        "1:45: provider.launcher cannot be 'jrun' (did you mean 'jsrun'?)",
        "2:10: blocks has no key 'maxx' (did you mean 'max'?)",
        "2:24: blocks.min is a whole number, not a text",
        "2:34: blocks.nodes is 0; it takes at least 1",
        "2:47: blocks.walltime: '90:00' is ambiguous: write 90m, 1h30m or 1:30:00",
        "3:19: limits.submits: 6 is not an amount per time; write 6/min, 200/week or 10/2h",
        "4:16: workers.pin cannot be 'gpu' (did you mean 'gpus'?)",
        "5:12: max_tasks is -1; it takes at least 0",
        "6:10: network is a mapping, not a list",
        "7:1: the file has no key 'thread' (did you mean 'threads'?)",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "1:1: the file is empty (`oncue endpoint configure NAME` writes one with all keys explained)"),
        (
            "# no: key\n",
            "1:1: the file is empty (`oncue endpoint configure NAME` writes one with all keys explained)",
        ),
        ("[]", "1:1: an endpoint file is a mapping, not a list"),
        ("provider: local", "1:11: provider is a mapping, not a text"),
        ("provider:", "1:10: provider is a mapping, not nothing"),
        ("provider: {queue: x}", "1:11: provider lacks the key 'kind' (known: local, slurm, pbspro, torque"),
        ("provider: {kind: 3}", "1:18: provider.kind is a text, not a whole number"),
        ("provider: {kind: slrum}", "1:18: provider.kind cannot be 'slrum' (did you mean 'slurm'?)"),
        ("provider: {kind: kubernetes}", "1:11: provider lacks the key 'image'"),
        ("blocks: {min: 3, max: 2}", "1:23: blocks: max: 2 is less than min, 3"),
        ("blocks: {initial: 2}", "1:19: blocks: initial: 2 is more than max, 1"),
        ("blocks: {walltime: 30s}", "1:20: blocks: walltime: a block lives for a minute at least"),
        ("workers: {per_node: 4, cores: 2}", "1:21: workers: per_node: the number is given already by cores"),
        ("workers: {memory: 0}", "1:19: workers: memory: a worker needs some; write 8GB"),
        ("network: {interface: ib0, address: n1}", "1:36: network: address: the interface has one already"),
        ("network: {port: 70000}", "1:17: network.port is 70000; it takes at most 65535"),
        ("max_memory: 2 GX", "1:13: max_memory: 'GX' is not a unit of size"),
        ("environment: {A: [1]}", "1:18: environment.A is a text or a whole number, not a list"),
        ("environment: {B: x, A: yes, C: true}", "1:32: environment.C is a text or a whole number, not true or false"),
        ("a: &x 1", "1:4: &x is a YAML anchor, and endpoint files have none (write it out)"),
        ("grace: 1s\ngrace: 2s", "2:1: the key 'grace' is here twice (first in line 1)"),
        ("blocks: {max: 1", "2:1: this is not YAML"),
    ],
)
def test_a_fault_is_named(text: str, problem: str) -> None:
    assert any(found.startswith(problem) for found in problems(text)), problems(text)


@pytest.mark.parametrize("kind", ["slurm", "pbspro", "torque", "lsf", "gridengine", "condor"])
def test_the_words_of_another_scheduler_are_answered_with_the_right_ones(kind: str) -> None:
    wrong = problems(f"provider: {{kind: {kind}, allocation: x}}")

    assert wrong[0].endswith(("(did you mean 'account'?)", "(did you mean 'project'?)"))
