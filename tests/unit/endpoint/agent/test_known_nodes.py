"""Nodes in the journal: known before they get a task, awaited after a restart."""

from __future__ import annotations

from pathlib import Path

from oncue.endpoint.agent.journal import DiskFile, Journal
from oncue.endpoint.agent.known_nodes import KnownNodes, NodeKey

A: NodeKey = ("b1", b"aaaaaaaa")
B: NodeKey = ("b2", b"bbbbbbbb")


class Agent:
    """Nodes of an agent whose process starts anew with each of these objects."""

    def __init__(self, folder: Path, *, adopts: bool = True) -> None:
        self.journal = Journal(DiskFile(folder / "journal"), b"12345678")
        found = self.journal.recovered
        self.nodes = KnownNodes(self.journal, found.nodes, complete=found.nodes_complete, adopts=adopts)

    def end(self) -> None:
        assert self.journal.write()


def settled(folder: Path, *nodes: NodeKey) -> None:
    agent = Agent(folder)
    agent.nodes.settle()
    for node in nodes:
        agent.nodes.join(node)
    agent.end()


def test_a_restart_awaits_the_nodes_of_before_until_they_have_told(tmp_path: Path) -> None:
    settled(tmp_path, A, B)

    nodes = Agent(tmp_path).nodes
    assert nodes.complete
    assert nodes.awaited == {A, B}
    nodes.join(A)
    nodes.told(A)
    assert nodes.awaited == {B}
    nodes.told(B)
    assert not nodes.awaited
    assert not nodes.missed


def test_a_node_that_ended_untold_is_missed_also_by_the_next_start(tmp_path: Path) -> None:
    settled(tmp_path, A, B)

    agent = Agent(tmp_path)
    agent.nodes.end_block("b1")
    assert (agent.nodes.missed, agent.nodes.awaited) == (True, {B})
    agent.end()  # before its tasks were given up

    assert Agent(tmp_path).nodes.awaited == {A, B}


def test_nodes_that_have_left_are_not_awaited(tmp_path: Path) -> None:
    settled(tmp_path, A, B)
    agent = Agent(tmp_path)
    agent.nodes.join(A)
    agent.nodes.settle()  # B has not come back, and no task is missing
    agent.end()
    assert Agent(tmp_path).nodes.awaited == {A}

    agent.nodes.leave(A)
    agent.end()
    assert not Agent(tmp_path).nodes.awaited


def test_a_node_that_left_and_came_back_before_all_was_settled_stays_known(tmp_path: Path) -> None:
    settled(tmp_path, A)
    agent = Agent(tmp_path)
    agent.nodes.join(A)
    agent.nodes.leave(A)
    agent.nodes.join(A)
    agent.nodes.settle()
    agent.end()
    assert Agent(tmp_path).nodes.awaited == {A}


def test_only_nodes_of_live_blocks_are_awaited(tmp_path: Path) -> None:
    settled(tmp_path, A, B)
    nodes = Agent(tmp_path).nodes
    nodes.keep_only({"b2"})
    assert (nodes.missed, nodes.awaited) == (True, {B})


def test_a_journal_of_a_former_version_or_of_local_workers_does_not_know_all_nodes(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    assert not agent.nodes.complete
    agent.nodes.join(A)  # while tasks of the former process may run elsewhere
    agent.end()
    assert not Agent(tmp_path).nodes.complete

    settled(tmp_path)
    assert Agent(tmp_path).nodes.complete
    Agent(tmp_path, adopts=False).end()
    assert not Agent(tmp_path).nodes.complete
