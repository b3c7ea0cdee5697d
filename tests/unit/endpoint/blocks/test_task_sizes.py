"""Room that tasks take on blocks, and what can never fit."""

from __future__ import annotations

import pytest

from oncue.endpoint.blocks.scaling import ScalingLimits
from oncue.endpoint.blocks.task_sizes import TaskSizes
from oncue.endpoint.options.apply import NodeResources
from oncue.protocol.run_options import Resources, RunOptions

GB = 1 << 30
NODE = NodeResources(cores=8, memory_bytes=16 * GB, gpus=0)
LIMITS = ScalingLimits(max=2, nodes=2, workers=4, walltime_s=7_200.0, node_hours=4.0)
FUNCTIONS = {"pair": RunOptions(Resources(nodes=2)), "wide": RunOptions(Resources(cores=8))}


def sizes(stated: NodeResources = NODE, limits: ScalingLimits = LIMITS) -> TaskSizes:
    return TaskSizes(limits, NODE, stated, FUNCTIONS.get)


def asking(**resources: int) -> RunOptions:
    return RunOptions(Resources(**resources))


def test_a_task_takes_the_room_that_it_states() -> None:
    found = sizes()

    assert found.of("any", None) == (0, 1)
    assert found.of("wide", None) == (0, 4)
    assert found.of("wide", asking(cores=2)) == (0, 1), "the call comes first"
    assert found.of("any", asking(memory_bytes=12 * GB)) == (0, 3)
    assert found.of("any", asking(nodes=1, ranks=4)) == (0, 2)
    assert found.of("pair", None) == (2, 4)
    assert found.of("pair", asking(ranks=32)) == (2, 4)


def test_waiting_tasks_count_with_their_room_and_gangs_apart() -> None:
    beyond, gangs = sizes().demand({("any", None): 10, ("wide", None): 3, ("pair", None): 2})

    assert 15 + beyond == 10 + 3 * 4, "without the gangs"
    assert gangs == (2, 2)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (Resources(nodes=3), "3 nodes, and a block of this endpoint has 2 at most: raise blocks.nodes"),
        (Resources(cores=9), "9 cores, and a node's workers have 8 in all"),
        (Resources(nodes=2, cores=9), "9 cores on each node"),
        (Resources(ranks=9), "9 ranks, and a node's workers have 8 in all: state more `nodes`"),
        (Resources(nodes=2, ranks=17), "9 ranks on each node"),
        (Resources(memory_bytes=17 * GB), "of memory, and a node has"),
    ],
)
def test_what_can_never_fit_says_why(asked: Resources, reason: str) -> None:
    assert reason in sizes().misfit(asked)


def test_what_fits_is_not_refused() -> None:
    for asked in (Resources(), Resources(nodes=2, ranks=16), Resources(cores=8), Resources(nodes=2, cores=8)):
        assert sizes().misfit(asked) == ""


def test_only_what_is_known_of_the_nodes_refuses_a_task() -> None:
    unknown = sizes(NodeResources(0, 0, 0))

    assert unknown.misfit(Resources(cores=1_000, gpus=4, memory_bytes=1 << 50)) == ""
    assert "3 nodes" in unknown.misfit(Resources(nodes=3))


def test_a_block_that_the_node_hours_can_never_pay_is_refused() -> None:
    limits = ScalingLimits(max=2, nodes=4, workers=4, walltime_s=7_200.0, node_hours=4.0)

    assert "takes 6 node-hours in 2h, and limits.node_hours is 4" in sizes(limits=limits).misfit(Resources(nodes=3))
    assert sizes(limits=limits).misfit(Resources(nodes=2)) == ""
