"""Answers about large values: cut into parts, and nobody waits for them."""

from __future__ import annotations

import contextlib
import json
import time

import msgspec
import pytest

from oncue.dispatcher.http.owner_memory import OWNER_ANSWERS
from oncue.dispatcher.services.tasks import OUTCOMES_BYTES
from oncue.view.lists import PAGE_BYTES
from tests.e2e.running import Answer, System
from tests.security.raw_http import connect, head, in_threads
from tests.security.stall import check_no_stall

COUNT = 200
EXPANSION = 7  # of a byte in JSON
FUNCTION = """
def wide(i):
    print("\\0" * 60_000)
    return {f"{i}\\udc80": [[] for _ in range(15_000)], "n": i, "plain": [1] * 30_000}
"""


@pytest.fixture(scope="module")
def wide(served: System) -> list[str]:
    """Return the ids of tasks with large outputs, and with results that JSON has not."""
    served.write("wide.py", FUNCTION)
    served.oncue("functions", "register", "wide.py:wide")
    calls = {"function": "wide", "endpoint": "local", "calls": [[[i], {}] for i in range(COUNT)]}
    accepted = served.http("POST", "/v1/tasks/batch", calls).json
    found = [f"{int(accepted['first'], 16) + i:032x}" for i in range(COUNT)]
    served.await_tasks(COUNT, function="wide")
    return found


def pages(system: System, path: str) -> list[tuple[int, list[object]]]:
    """Read all pages of a list. Return each one's size and items."""
    return [(len(page.body), page.json["items"]) for page in system.pages(f"{path}limit=1000")]


def test_pages_of_tasks_are_small_and_complete(served: System, wide: list[str]) -> None:
    found: list[tuple[int, list[object]]] = []

    def attack() -> None:
        found[:] = pages(served, "/v1/tasks?function=wide&")

    check_no_stall(served.local["url"], attack)

    assert sorted(item["id"] for _, items in found for item in items) == sorted(wide)  # type: ignore[index]
    assert len(found) > 5
    assert max(size for size, _ in found) < EXPANSION * (PAGE_BYTES + (1 << 20))


def test_pages_of_events_are_small_and_complete(served: System) -> None:
    for i in range(20):
        event = {"type": "wide", "source": "/wide", "id": str(i), "data": [[1] * 5] * 60_000}
        assert served.http("POST", "/v1/events", event).status == 202
    found: list[tuple[int, list[object]]] = []

    def attack() -> None:
        found[:] = pages(served, "/v1/events?type=wide&")

    check_no_stall(served.local["url"], attack)

    assert len([item for _, items in found for item in items]) == 20
    assert max(size for size, _ in found) < PAGE_BYTES + (2 << 20)


@pytest.mark.parametrize("kind", ["application/json", "application/msgpack"])
def test_outcomes_are_cut_and_the_others_can_be_asked_for(served: System, wide: list[str], kind: str) -> None:
    names = [bytes.fromhex(i) for i in wide]

    def ask(wanted: list[bytes]) -> tuple[list[bytes], bool]:
        if kind == "application/json":
            body = json.dumps({"ids": [i.hex() for i in wanted], "wait_ms": 60_000}).encode()
        else:
            body = msgspec.msgpack.encode({"ids": wanted, "wait_ms": 60_000})
        answer = served.http("POST", "/v1/tasks/outcomes", body, {"Content-Type": kind})
        assert answer.status == 200
        assert len(answer.body) < EXPANSION * (OUTCOMES_BYTES + (1 << 20))
        if kind == "application/json":
            return [bytes.fromhex(o["id"]) for o in answer.json], "oncue-more" in answer.headers
        return [o[0] for o in msgspec.msgpack.decode(answer.body)], "oncue-more" in answer.headers

    def attack() -> None:
        left.clear()
        left.update(names)
        more = True
        while more:
            found, more = ask([i for i in names if i in left])
            assert found
            left.difference_update(found)

    left: set[bytes] = set()
    check_no_stall(served.local["url"], attack)
    assert not left


def test_the_client_gets_all_outcomes(served: System, wide: list[str]) -> None:
    with served.client() as client:
        found = client.session.outcomes.request([bytes.fromhex(i) for i in wide])
    assert sorted(o.id.hex() for o in found) == sorted(wide)


def test_ten_readers_of_large_lists_hold_nobody(served: System, wide: list[str]) -> None:
    def attack() -> None:
        in_threads(10, lambda: pages(served, "/v1/tasks?function=wide&"))

    check_no_stall(served.local["url"], attack, p99=0.2)


def test_answers_that_nobody_reads_take_bounded_memory(served: System, wide: list[str]) -> None:
    request = head("GET", "/v1/tasks?function=wide&limit=1000", Authorization=f"Bearer {served.local['token']}")
    assert len(served.http("GET", "/v1/tasks?function=wide&limit=1000").body) > 4 << 20
    peaks = [served.server.memory_info().rss]

    with contextlib.ExitStack() as stack:
        for _ in range(150):
            stack.enter_context(connect(served.local["url"], 4_096)).sendall(request)
        deadline = time.monotonic() + 8  # within it, no reader is slow enough to be cut
        while time.monotonic() < deadline:
            peaks.append(served.server.memory_info().rss)
            time.sleep(0.05)
        assert served.http("GET", "/v1/me").status == 200

    assert max(peaks) < peaks[0] + 3 * OWNER_ANSWERS


def test_short_forms_of_many_large_tasks_are_answered_in_part(served: System, wide: list[str]) -> None:
    answer = served.http("GET", f"/v1/tasks?id={wide[0][:6]}&limit=1000")

    assert 0 < len(answer.json["items"]) < COUNT
    assert len(answer.body) < EXPANSION * (PAGE_BYTES + (4 << 20))


@pytest.fixture(scope="module")
def large(served: System) -> list[str]:
    """Return the ids of cancelled tasks with 240 kB of arguments each."""
    served.oncue("endpoint", "register", "away", "--dir", str(served.folder / "away"))
    with served.client() as client:
        tasks = client.with_options(endpoint="away").map(len, [str(i % 10) * 240_000 for i in range(2 * COUNT)])
        client.flush(120)
        ids = [task.id for task in tasks]
    assert served.http("POST", "/v1/tasks/cancel", {"tasks": ids}).json["count"] == len(ids)
    served.await_tasks(len(ids), endpoint="away")
    return ids


@pytest.mark.parametrize(
    ("path", "more"),
    [("/v1/tasks/retry", {"dry_run": True}), ("/v1/tasks/retry", {}), ("/v1/tasks/cancel", {})],
    ids=["retry dry", "retry", "cancel"],
)
def test_ids_of_many_large_tasks_take_bounded_memory(
    served: System, large: list[str], path: str, more: dict[str, object]
) -> None:
    before = served.server.memory_info().rss
    peaks: list[int] = []
    answers: list[Answer] = []

    def attack() -> None:
        answers.append(served.http("POST", path, {"tasks": large} | more))
        peaks.append(served.server.memory_info().rss)

    check_no_stall(served.local["url"], lambda: in_threads(1 if more == {} else 6, attack))

    assert {a.status for a in answers} == {202}
    assert max(peaks) < before + 3 * len(large) * 240_000
    if path.endswith("retry"):
        assert [t["retry_of"] for t in answers[0].json["tasks"]] == large
