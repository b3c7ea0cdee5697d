"""Seeds of tasks over several nodes hold; and bugs that are put in on purpose are found."""

from __future__ import annotations

import pytest

from oncue.endpoint.nodes.gangs import Ends, Gangs
from oncue.endpoint.nodes.node_pool import NodePool
from oncue.protocol.records import Ended
from tests.simulation.gangs import GangWorld
from tests.simulation.mutants import first_that_fails

SEEDS, BUNCH = 30, 15
MUTANT_SEEDS = 100


@pytest.mark.parametrize("first", range(0, SEEDS, BUNCH))
def test_seeds_hold_with_tasks_over_several_nodes(first: int) -> None:
    begun = 0
    for seed in range(first, first + BUNCH):
        world = GangWorld(seed)
        try:
            world.run()
        except AssertionError as e:
            raise AssertionError(f"{e} (python -m tests.simulation --gangs --seed {seed} --trace)") from e
        begun += len(world.begun)
    assert begun > BUNCH


# ---------------------------------------------------------------- bugs on purpose


class AcksFailuresInDoubt(Gangs):
    """Lets a node drop a failure that the agent's journal does not have yet."""

    def in_doubt(self, node: NodePool) -> bool:
        return False


class KeepsNodesOfAdopted(Gangs):
    """Gives away nodes that were kept before a task of the former process was found on them."""

    def _release_kept(self, key: object) -> None:
        if not self._whole:
            super()._release_kept(key)  # type: ignore[arg-type]


class AdoptsNothing(Gangs):
    """Does not take over the tasks that ran before the agent's restart."""

    def adopt(self, node: NodePool) -> None: ...


class StartsOnBusyNodes(Gangs):
    """Takes nodes that are kept for nodes that are idle."""

    def _is_free(self, kept: list[NodePool] | None) -> bool:
        return kept is not None and all(node.room() > 0 for node in kept)


class ForgetsTheOthers(Gangs):
    """Looks after the first node of a task alone."""

    def on_gone(self, gone: NodePool) -> NodePool | None:
        return None


class BelievesFailures(Gangs):
    """Takes a failure for the task's own, although one of its nodes may have been lost."""

    def _is_doubtful(self, e: Ended, function: str, now_us: int) -> bool:
        return False


class NeverSettles(Gangs):
    """Does not say how a failure in doubt has turned out."""

    def settled(self) -> Ends:
        return []


@pytest.mark.parametrize(
    ("mutant", "first"),
    [
        (AcksFailuresInDoubt, 0),
        (KeepsNodesOfAdopted, 50),
        (AdoptsNothing, 25),
        (StartsOnBusyNodes, 0),
        (ForgetsTheOthers, 45),
        (BelievesFailures, 30),
        (NeverSettles, 0),
    ],
)
def test_bugs_are_found(mutant: type[Gangs], first: int) -> None:
    first_that_fails(lambda seed: GangWorld(seed, gangs_class=mutant), range(first, first + MUTANT_SEEDS))


def test_an_agent_that_dies_again_and_again_loses_no_task_over_several_nodes() -> None:
    for seed in range(30, 36):
        GangWorld(seed, crashes=0.02).run()
