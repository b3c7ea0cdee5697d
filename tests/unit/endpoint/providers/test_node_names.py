"""Names of nodes in a scheduler's short form."""

from __future__ import annotations

import pytest

from oncue.endpoint.providers.node_names import expand_nodes


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        ("n1", ("n1",)),
        ("n[09-11],a", ("n09", "n10", "n11", "a")),
        ("x[1-2]c[0-1]n0,gpu[1,03-04]", ("x1c0n0", "x1c1n0", "x2c0n0", "x2c1n0", "gpu1", "gpu03", "gpu04")),
        ("n[1", ("n[1",)),
        ("n[a-b]", ("na-b",)),
    ],
)
def test_ranges_are_expanded_in_order(text: str, names: tuple[str, ...]) -> None:
    assert expand_nodes(text) == names


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("n[1-9999]" * 3, 10_000),  # 10^12 names
        ("n[1-9999]" * 9_000, 1),
        ("[" * 100_000, 1),
        ("n[" + "1-9999," * 10_000 + "]", 10_000),
        ("n[1-99999999999999999999]", 1),
    ],
)
def test_a_strange_list_costs_little(text: str, count: int) -> None:
    assert len(expand_nodes(text)) == count
