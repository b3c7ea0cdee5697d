"""Settings of agent.json, overridden by endpoint.yaml; numbers of workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from oncue.endpoint.options.apply import NodeResources, effective, resources_here, worker_count
from oncue.endpoint.options.file import parse_options
from oncue.endpoint.options.options import EndpointOptions, WorkerOptions
from oncue.endpoint.settings import EndpointSettings, load, save
from oncue.errors import Invalid

NODE = NodeResources(64, 256 * 10**9, 4)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (WorkerOptions(), 64),
        (WorkerOptions(per_node=3), 3),
        (WorkerOptions(cores=2), 32),
        (WorkerOptions(cores=3), 21),
        (WorkerOptions(memory=8 * 10**9), 32),
        (WorkerOptions(gpus=1), 4),
        (WorkerOptions(gpus=1, cores=2), 4),
        (WorkerOptions(cores=1, memory=100 * 10**9, gpus=1), 2),
        (WorkerOptions(pin="cores"), 64),
    ],
)
def test_workers_share_a_node_by_what_each_needs(options: WorkerOptions, count: int) -> None:
    assert worker_count(options, NODE) == count


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (WorkerOptions(cores=65), "cores: 65, and this node has 64"),
        (WorkerOptions(gpus=8), "gpus: 8, and this node has 4"),
        (WorkerOptions(memory=10**12), "memory: 1,000,000,000,000"),
    ],
)
def test_no_worker_at_all_is_an_error_that_says_what_is_missing(options: WorkerOptions, why: str) -> None:
    with pytest.raises(Invalid, match=why):
        worker_count(options, NODE)


def test_the_file_wins_over_the_settings_and_leaves_the_others(tmp_path: Path) -> None:
    settings = EndpointSettings(id="ep_1", name="lab", workers=7, max_tasks=5, max_memory="1GB", grace_s=9)
    save(tmp_path, settings)
    options = parse_options("workers: {per_node: 2}\nmax_memory: 3GB\ngrace: 1m\npass_env: [A]\n", "endpoint.yaml")

    applied = effective(load(tmp_path), options)

    assert (applied.workers, applied.max_tasks, applied.max_memory, applied.grace_s) == (2, 5, 3 * 10**9, 60)
    assert applied.pass_env == ("A",)
    assert load(tmp_path) == settings


def test_without_a_file_the_settings_are_as_before() -> None:
    settings = EndpointSettings(id="ep_1", name="lab", workers=7)

    assert effective(settings, EndpointOptions()) == settings


def test_resources_of_this_machine() -> None:
    here = resources_here({"CUDA_VISIBLE_DEVICES": "0,1,GPU-ab"})

    assert here.cores >= 1
    assert here.memory_bytes > 1 << 28
    assert here.gpus == 3
    assert resources_here({"ROCR_VISIBLE_DEVICES": "-1"}).gpus == 0
