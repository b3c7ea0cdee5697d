"""A few faults of blocks and nodes on a real Slurm: one outcome each, no job left.

`python -m tests.chaos.blocks` does the same for longer, with all faults.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.chaos.blocks import Faults, chaos_site, run_chaos
from tests.slurm.cluster import Cluster

SEED = "13"  # its faults: see the test


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_tasks_on_blocks_have_one_outcome_whatever_is_killed(slurm: Cluster, tmp_path: Path) -> None:
    rng = random.Random(int(os.environ.get("ONCUE_CHAOS_SEED", SEED)))
    with chaos_site(tmp_path, slurm) as site:
        faults = Faults(site, rng, Faults.QUICK)

        found = run_chaos(site, faults, rng, count=5)

    assert found["tasks"]
