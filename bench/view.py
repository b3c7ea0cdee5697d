"""Measure the view's CPU time a task, in groups as a busy server makes them.

A task costs the insert of its frame and the write of its outcome.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from oncue.ids import batch_ids, new_uuid7
from oncue.log import Record, RecordBatch
from oncue.protocol.codec import encode
from oncue.protocol.records import OK, VERSION, Call, Ended, ResultFrame, TaskFrame, TaskRecord
from oncue.protocol.topics import RESULTS, TaskTopics
from oncue.view.projector import Projector
from oncue.view.schema import open_writer

GROUP = 8  # frames a transaction
LAG = 8  # frames between a task and its outcome


def run(tasks: int = 100_000, frame: int = 256) -> dict[str, float]:
    """Return µs of CPU a task in one thread: total, task frames, outcomes."""
    count = max(1, tasks // frame)
    accepted, ended = _records(count, frame)
    with tempfile.TemporaryDirectory() as folder:
        db = open_writer(Path(folder) / "view.db")
        projector = Projector(db)
        spent = {"tasks": 0.0, "outcomes": 0.0}
        for start in range(0, count + LAG, GROUP):
            for name, topic, records, at in (
                ("tasks", TaskTopics().of("ep"), accepted, start),
                ("outcomes", RESULTS, ended, start - LAG),
            ):
                part = records[max(at, 0) : max(at + GROUP, 0)]
                if part:
                    began = time.process_time()
                    projector.apply([RecordBatch(topic, 0, range(max(at, 0), max(at, 0) + len(part)), part)])
                    spent[name] += time.process_time() - began
        closed = db.execute("SELECT count(*) FROM task WHERE state = 1").fetchone()[0]
        db.close()
    if closed != count * frame:
        raise RuntimeError(f"{closed} of {count * frame} tasks are closed")
    found = {f"{name}_us": seconds / closed * 1e6 for name, seconds in spent.items()}
    return {"count": closed, "frame": frame, "us": sum(found.values()), **found}


def _records(count: int, frame: int) -> tuple[list[Record], list[Record]]:
    call = Call(VERSION, "0" * 64, "ep", "somebody", "nothing", stream="s")
    now = time.time_ns() // 1000
    accepted, ended = [], []
    for _ in range(count):
        ids = batch_ids("somebody", new_uuid7(), frame)
        accepted.append(Record(encode(TaskFrame(VERSION, call, now, [TaskRecord(i, b"m\x92\x90\x80") for i in ids]))))
        ends = [Ended(i, 1, OK, now, now + 5, b"m\xc0") for i in ids]
        ended.append(Record(encode(ResultFrame(VERSION, call, "ep", now, ends))))
    return accepted, ended


if __name__ == "__main__":
    print(json.dumps([run(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000, frame) for frame in (1, 64, 256, 1024)]))
