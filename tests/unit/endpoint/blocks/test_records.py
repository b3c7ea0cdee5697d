"""Words on the end of a block."""

from __future__ import annotations

from typing import Any

import pytest

from oncue.endpoint.blocks.records import BlockPhase, BlockRecord, end_words, ended_well

NOISE = "INFO oncue.agent: the agent needs this node no more\n"


def block(**facts: Any) -> BlockRecord:
    return BlockRecord("b1", BlockPhase.ENDED, nodes=1, workers=2, walltime_s=60.0, job="7", **facts)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"registered_us": 1, "ending": "completed", "exit": 0, "stderr": NOISE}, "job 7, completed, exit 0"),
        ({"ending": "failed", "exit": 1, "stderr": "a\nno oncue"}, "job 7, failed, exit 1, its stderr ends with: no oncue"),
        ({"ending": "completed", "exit": 0, "stderr": "soon"}, "job 7, completed, exit 0, its stderr ends with: soon"),
        ({"ending": "cancelled", "cancelled": True, "reason": "Resources"}, "job 7, cancelled before it ran"),
        ({"ending": "cancelled", "reason": "by root", "running_us": 1}, "job 7, cancelled, by root"),
    ],
)  # fmt: skip
def test_the_end_of_a_block_in_words(facts: dict[str, Any], words: str) -> None:
    assert end_words(block(**facts)) == words


def test_only_a_block_with_workers_ends_well() -> None:
    assert ended_well(block(registered_us=1, exit=0))
    assert not ended_well(block(exit=0))
    assert not ended_well(block(registered_us=1, exit=3))
