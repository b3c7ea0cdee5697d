"""Child process that applies batches to a view until it is killed.

Run: python -m tests.unit.view.view_child FOLDER.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from oncue.ids import derived_ids
from oncue.log import Record, RecordBatch
from oncue.protocol.codec import encode
from oncue.protocol.records import (
    ERROR,
    LOST,
    OK,
    VERSION,
    Call,
    Ended,
    ResultFrame,
    StoredRetryPolicy,
    TaskFrame,
    TaskRecord,
)
from oncue.protocol.topics import RESULTS, TaskTopics
from oncue.view import View

ENDPOINT = "ep"
TASKS = TaskTopics().of(ENDPOINT)
PLAIN = Call(VERSION, "a" * 64, ENDPOINT, "ann", "plain")
RETRIED = Call(VERSION, "b" * 64, ENDPOINT, "bob", "retried", retry=StoredRetryPolicy(1))
FRAMES, SIZE = 140, 40


def ids_of(n: int) -> list[bytes]:
    return derived_ids(1_000 + n, b"%d" % n, SIZE)


def series() -> list[list[RecordBatch]]:
    """Return groups of batches: task frames, then their results.

    Some results come first, some tasks are retried, some records repeat.
    """
    ends: dict[str, int] = {}

    def batch(topic: str, message: TaskFrame | ResultFrame) -> RecordBatch:
        offset = ends.get(topic, 0)
        ends[topic] = offset + 1
        return RecordBatch(topic, 0, (offset,), (Record(encode(message)),))

    groups = []
    for n in range(FRAMES):
        call = RETRIED if n % 5 == 0 else PLAIN
        ids = ids_of(n)
        tasks = batch(TASKS, TaskFrame(VERSION, call, n, [TaskRecord(i, b"a") for i in ids]))
        first = [Ended(i, 1, LOST if k % 9 == 0 else OK, 5, 10 + k, b"v") for k, i in enumerate(ids)]
        second = [Ended(i, 2, ERROR, 50, 60, b"w") for k, i in enumerate(ids) if k % 9 == 0]
        results = [batch(RESULTS, ResultFrame(VERSION, call, ENDPOINT, n, e)) for e in (first, second, first)]
        groups += [[results[0]], [tasks], results[1:]] if n % 7 == 0 else [[tasks, results[0]], results[1:]]
    return groups


async def work(path: Path) -> None:
    view = View.open(path)
    for n, group in enumerate(series()):
        await view.apply(group)
        print(n, flush=True)
    await view.close()


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1]) / "view.db"))
