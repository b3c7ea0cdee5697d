"""One owner has as many triggers as the quota allows: nobody else waits, whatever is asked about them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.running import System
from tests.security.raw_http import in_threads
from tests.security.stall import check_no_stall

FILES, TRIGGERS = 3, 3_000
CALLERS = 4


@pytest.fixture(scope="module")
def many(system: System) -> System:
    for n in range(FILES):
        hooks = "\n".join(f"  - {{name: hook-{n}-{i}, kind: webhook, verify: none}}" for i in range(TRIGGERS))
        assert deploy(system, f"hooks-{n}", f"triggers:\n{hooks}\n") == 200
    return system


def deploy(system: System, label: str, text: str) -> int:
    return system.http("POST", "/v1/rules", {"files": [{"label": label, "text": text}]}).status


def ask(path: str, token: str | None = "") -> Callable[[System], int]:
    return lambda system: system.http("GET", path, token=token).status


def deploy_one(system: System) -> int:
    return sum(
        {deploy(system, "one", f"triggers: [{{name: one, kind: webhook, verify: none, type: t{n}}}]") for n in "ab"}
    )


@pytest.mark.parametrize(
    ("attack", "status"),
    [
        (ask("/health/ready", token=None), 200),
        (ask("/v1/triggers/hook-1-5"), 200),
        (ask("/v1/triggers/none"), 404),
        (ask("/v1/triggers"), 200),
        (deploy_one, 200),
    ],
    ids=["health", "one", "none", "all", "deploy"],
)
def test_thousands_of_triggers_hold_up_nobody(many: System, attack: Callable[[System], int], status: int) -> None:
    def all_callers() -> None:
        found: list[int] = []
        in_threads(1 if attack is deploy_one else CALLERS, lambda: found.extend(attack(many) for _ in range(3)))
        assert set(found) == {status}

    check_no_stall(many.local["url"], all_callers)
