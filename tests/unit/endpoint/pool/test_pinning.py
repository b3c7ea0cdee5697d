"""Cores and GPUs of each worker."""

from __future__ import annotations

import pytest

from oncue.endpoint.pool.pinning import Pinning, gpu_devices, worker_variables

CUDA = {"CUDA_VISIBLE_DEVICES": ["0", "1", "2", "3"]}


@pytest.mark.parametrize(
    ("pinning", "workers", "cores"),
    [
        (Pinning("cores"), 2, ["0,1", "2,3"]),
        (Pinning("cores", cores=1), 3, ["0", "1", "2"]),
        (Pinning("cores"), 8, ["0", "1", "2", "3", "0", "1", "2", "3"]),
        (Pinning("cores", cores=3), 2, ["0,1,2", "3,0,1"]),
        (Pinning("gpus"), 1, ["0,1,2,3"]),
    ],
)
def test_each_worker_gets_its_cores(pinning: Pinning, workers: int, cores: list[str]) -> None:
    found = worker_variables(pinning, workers, [0, 1, 2, 3], {})

    assert [v["ONCUE_CORES"] for v in found] == cores


@pytest.mark.parametrize(
    ("pinning", "workers", "gpus"),
    [
        (Pinning("gpus"), 4, ["0", "1", "2", "3"]),
        (Pinning("gpus", gpus=2), 2, ["0,1", "2,3"]),
        (Pinning("gpus"), 2, ["0,1", "2,3"]),
        (Pinning("gpus"), 6, ["0", "1", "2", "3", "0", "1"]),
    ],
)
def test_each_worker_gets_its_gpus(pinning: Pinning, workers: int, gpus: list[str]) -> None:
    found = worker_variables(pinning, workers, [], CUDA)

    assert [v["CUDA_VISIBLE_DEVICES"] for v in found] == gpus


def test_workers_are_not_pinned_unless_asked() -> None:
    assert worker_variables(None, 2, [0, 1], CUDA) == [{}, {}]


def test_gpus_are_those_that_the_scheduler_gave() -> None:
    given = {"CUDA_VISIBLE_DEVICES": "4, 6,-1", "ZE_AFFINITY_MASK": "0.0,0.1", "ROCR_VISIBLE_DEVICES": ""}

    assert gpu_devices(given) == {"CUDA_VISIBLE_DEVICES": ["4", "6"], "ZE_AFFINITY_MASK": ["0.0", "0.1"]}
