"""KeyNodes: the nodes that had an affinity key, a bounded number of them."""

from __future__ import annotations

import pytest

from oncue.endpoint.nodes import key_nodes
from oncue.endpoint.nodes.key_nodes import NODES, KeyNodes


def node(n: int) -> tuple[str, bytes]:
    return (f"b{n}", b"boot")


def test_the_last_node_comes_first() -> None:
    found = KeyNodes()
    for n in (1, 2, 1):
        found.add("a", node(n))
    assert list(found.of("a")) == [node(1), node(2)]
    assert list(found.of("b")) == []


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_nodes, "KEYS", 3)
    found = KeyNodes()
    for n in range(10):
        found.add("a", node(n))
        found.add(str(n), node(n))
    assert len(list(found.of("a"))) == NODES
    assert [bool(list(found.of(key))) for key in ("7", "8", "9", "a")] == [False, True, True, True]
