"""Many seeds of an agent and its nodes hold; and bugs that are put in on purpose are found."""

from __future__ import annotations

import pytest

from oncue.endpoint.agent.known_nodes import NodeKey
from oncue.endpoint.nodes.node_pool import NodePool
from oncue.endpoint.nodes.node_session import NodePhase
from oncue.protocol import bridge
from oncue.protocol.records import Ended, TaskRecord
from tests.simulation.mutants import first_that_fails
from tests.simulation.nodes import NodeWorld

SEEDS, BUNCH = 80, 20
MUTANT_SEEDS = 100


@pytest.mark.parametrize("first", range(0, SEEDS, BUNCH))
def test_seeds_hold_with_nodes(first: int) -> None:
    for seed in range(first, first + BUNCH):
        try:
            NodeWorld(seed).run()
        except AssertionError as e:
            raise AssertionError(f"{e} (python -m tests.simulation --nodes --seed {seed} --trace)") from e


# ---------------------------------------------------------------- bugs on purpose


class AcksBeforeTheJournal(NodePool):
    """Lets a node drop its results before the agent's journal has them."""

    def _on_results(self, message: bridge.Results, ends: list[Ended]) -> None:
        super()._on_results(message, ends)
        self._drained = self._results
        self.acknowledge()


class RequeuesWhatMayHaveBegun(NodePool):
    """Takes tasks of a node that vanished for tasks that had not begun."""

    def lose(self, why: str) -> None:
        self._requeue(self.tasks.take_missing({}))
        self._leave(why)


class TakesAnyResult(NodePool):
    """Accepts a result of an attempt that this node does not hold."""

    def _on_results(self, message: bridge.Results, ends: list[Ended]) -> None:
        super()._on_results(message, ends)
        self._events.ended.append(("", 1, ends))


class ForgetsWhatDidNotArrive(NodePool):
    """Believes that a node has all that was sent to it."""

    def _welcome(self) -> None:
        self._inventory.update({i: c.attempt for i, c in self.tasks.held.items()})
        super()._welcome()


class ClaimsNothing(NodePool):
    """Does not take over what a node runs since before the agent's restart."""

    def _welcome(self) -> None:
        self._inventory = {i: n for i, n in self._inventory.items() if i in self.tasks.held}
        super()._welcome()


class TakesRecallsForCancels(NodePool):
    """Reports tasks that it took back as cancelled."""

    def _requeue(self, tasks: list[TaskRecord]) -> None:
        if self.session.phase is not NodePhase.READY:
            super()._requeue(tasks)


class BelievesTheFirstWord(NodePool):
    """Takes a node for one that has named all that it holds, as soon as it has dialled."""

    def _on_hello(self, hello: bridge.Hello) -> None:
        self._site.told(self.key)
        super()._on_hello(hello)


class NeverBelieves(NodePool):
    """Does not note that a node has named all that it holds."""

    def _welcome(self) -> None:
        class Deaf:
            content, sizer, claim = self._site.content, self._site.sizer, self._site.claim

            def told(self, key: NodeKey) -> None: ...

        site, self._site = self._site, Deaf()
        super()._welcome()
        self._site = site


@pytest.mark.parametrize(
    ("mutant", "crashes"),
    [
        (AcksBeforeTheJournal, 0.02),
        (RequeuesWhatMayHaveBegun, 0.0),
        (TakesAnyResult, 0.0),
        (ForgetsWhatDidNotArrive, 0.0),
        (ClaimsNothing, 0.0),
        (TakesRecallsForCancels, 0.0),
        (BelievesTheFirstWord, 0.02),
        (NeverBelieves, 0.02),
    ],
)
def test_bugs_are_found(mutant: type[NodePool], crashes: float) -> None:
    first_that_fails(lambda seed: NodeWorld(seed, pool_class=mutant, crashes=crashes), range(MUTANT_SEEDS))


def test_an_agent_that_dies_again_and_again_loses_nothing() -> None:
    for seed in range(30, 45):
        NodeWorld(seed, crashes=0.02).run()
