"""FileChains: finds out which files were written by tasks that files caused.

A function that writes into the folder of its own trigger makes a loop: file, event, task, file. The
kernel does not say who wrote a file, so this follows from names and times:

- The new file has the path of an earlier one, or its name contains the earlier one's; or only one
  task that a file caused was running.
- The new file was last changed after the earlier one's event was stored, while a task of that event
  ran.

An independent writer may look the same for a while. So from HOLD_FROM files in a chain on, the next
event is held back for three times the usual interval, unless its name grows. A file that comes
meanwhile was not caused by it: the chain ends there, and its writer is trusted for a while.

The number of the file in its chain is the extension `oncuedepth`. The rules refuse events beyond a
limit (rules/batch_result.py). Chains are in memory only: after a restart they begin anew. Each
owner has chains of their own, so that nobody's functions hold or stop the files of others.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import msgspec

from oncue.clocks.process import now_us
from oncue.protocol.event_types import FILE_EVENT
from oncue.protocol.records import Event
from oncue.rules.batch_result import MAX_FILE_DEPTH
from oncue.triggers.file.event import LOOPS_ALLOWED
from oncue.view import TaskRun

MOST = 10_000  # files that are remembered
HOLD_FROM = 4  # files in a chain
HOLD_TIMES, LEAST_HOLD_S, LONGEST_HOLD_S = 3.0, 0.3, 60.0
LONGEST_GAP_US = 10_000_000  # between two files of a chain whose names do not grow
TRUST_S = 3600.0
SLACK_US = 300_000  # difference of clocks, and of a file's time to its task's
SEPARATORS, MOST_SEPARATORS = "-_. ", 16  # in stems
NOTE_US = 3_600_000_000
TICK_US = 10_000  # the kernel's file times lag by so much
AT_ONCE = 64  # files of a batch that are looked at in one go
MOST_CONTAINED = 3  # names that are part of one
LATELY_US = 200_000
NOT_YET_S = 0.05  # the view may not have the task yet
ROUNDS_RUNNING = 4  # latest files whose tasks may run

Key = tuple[str, str]  # source and id of an event
Runs = Callable[[Sequence[Key]], Awaitable[Mapping[Key, Sequence[TaskRun]]]]


@dataclass(slots=True)
class TracedFile:
    """A file whose event was stored."""

    key: Key
    trigger: str
    path: str
    stem: str
    written_us: int
    held_us: int  # when its event was ready to be stored
    stored_us: int = 0  # 0: not yet
    depth: int = 0  # number in its chain
    names_grow: bool = False


class Candidates(NamedTuple):
    """Earlier files whose tasks may have written a file."""

    contained: list[TracedFile]  # their names are part of the file's, the longest first
    same: TracedFile | None  # of the same path
    latest: list[TracedFile]  # if neither is known


class FileChains:
    """Chains of the files of one owner's triggers. Used in the event loop only."""

    def __init__(self, runs: Runs) -> None:
        """`runs`: events -> the runs of the tasks that they caused."""
        self._runs = runs
        self._by_path: dict[str, TracedFile] = {}  # oldest first
        self._by_stem: dict[str, TracedFile] = {}
        self._lengths: dict[int, int] = {}  # of the stems -> how many
        self._latest: deque[TracedFile] = deque(maxlen=ROUNDS_RUNNING)
        self._trusted: dict[str, float] = {}  # path or trigger -> until, in monotonic seconds
        self._stopped: dict[str, TracedFile] = {}  # trigger -> the last file of a chain that was stopped

    async def trace(self, events: Sequence[Event]) -> tuple[Sequence[Event], list[TracedFile]]:
        """Return the events with their depths, and what `stored` needs. May take a while."""
        files = [_file(event) for event in events if _is_of_file(event)]
        if not files or len(files) < len(events) or LOOPS_ALLOWED in events[0].extensions:
            return events, []
        found: list[Candidates] = []
        for n, file in enumerate(files):
            if n % AT_ONCE == AT_ONCE - 1:  # long names take up to 0.3 ms each
                await asyncio.sleep(0)
            found.append(self._candidates(file, alone=len(files) == 1))
        runs = await self._runs_of({c.key: c for some in found for c in _each(some) if c.stored_us})
        hold_s = 0.0
        for file, candidates in zip(files, found, strict=True):
            parent = self._parent(file, candidates, runs) if runs else None
            if parent is not None:
                hold_s = max(hold_s, self._count(file, parent))
        if hold_s:
            await asyncio.sleep(hold_s)
        if not runs:
            return events, files
        return [_deeper(event, file) for event, file in zip(events, files, strict=True)], files

    def stored(self, files: Sequence[TracedFile]) -> None:
        """Note that the events of these files are durable."""
        at_us = now_us()
        for file in files:
            file.stored_us = at_us
            self._by_path.pop(file.path, None)
            self._by_path[file.path] = file
            if file.stem not in self._by_stem:
                self._lengths[len(file.stem)] = self._lengths.get(len(file.stem), 0) + 1
            self._by_stem[file.stem] = file
            self._latest.append(file)
        while len(self._by_path) > MOST:
            self._forget(self._by_path.pop(next(iter(self._by_path))))

    def _forget(self, file: TracedFile) -> None:
        if self._by_stem.get(file.stem) is not file:
            return
        del self._by_stem[file.stem]
        self._lengths[len(file.stem)] -= 1
        if not self._lengths[len(file.stem)]:
            del self._lengths[len(file.stem)]

    def note(self, trigger: str) -> str:
        """Return what the trigger's status says about a loop that was stopped lately."""
        file = self._stopped.get(trigger)
        if file is None or now_us() - file.stored_us > NOTE_US:
            return ""
        return (
            f"a loop was stopped: {file.path} is number {file.depth} in a chain of files that functions wrote."
            " Let the function write into another folder, or leave its files out with `ignore`; or `loops: allow`"
        )

    def _candidates(self, file: TracedFile, alone: bool) -> Candidates:
        """Return the earlier files to look at.

        `alone`: no other file came at the same time.
        """
        contained = self._contained(file.stem)[:MOST_CONTAINED]
        same = self._by_path.get(file.path)
        # Of many files at a time only names tell which task wrote which.
        return Candidates(contained, same, list(self._latest) if alone and same is None else [])

    async def _runs_of(self, files: Mapping[Key, TracedFile]) -> dict[Key, Sequence[TaskRun]]:
        """Return the runs of the tasks of these files, read at once."""
        if not files:
            return {}
        found = dict(await self._runs(list(files)))
        lately = now_us() - LATELY_US
        left = [key for key, file in files.items() if key not in found and file.stored_us > lately]
        if left:
            await asyncio.sleep(NOT_YET_S)
            found |= await self._runs(left)
        return found

    def _parent(
        self, file: TracedFile, candidates: Candidates, runs: Mapping[Key, Sequence[TaskRun]]
    ) -> TracedFile | None:
        """Return the file whose task wrote this one, as far as it can be told."""
        for earlier in candidates.contained:
            if _run(earlier, file, runs, SLACK_US) is not None:
                file.names_grow = True
                return earlier
        same = candidates.same
        if same is not None:
            wrote = self._may_follow(same, file, file.path) and _run(same, file, runs, 0) is not None
            return same if wrote else None
        tried = [(_run(earlier, file, runs, 0), earlier) for earlier in candidates.latest]
        alone = _alone([(run, earlier) for run, earlier in tried if run is not None])
        if alone is not None:
            return alone if self._may_follow(alone, file, file.trigger) else None
        self._trust_if_held(candidates.latest[-1] if candidates.latest else None, file, file.trigger)
        return None

    def _count(self, file: TracedFile, parent: TracedFile) -> float:
        """Note that the file follows in a chain; return the seconds to hold it back."""
        file.depth = parent.depth + 1
        if file.depth >= MAX_FILE_DEPTH:
            self._stopped[file.trigger] = file
            return 0.0
        if file.depth < HOLD_FROM or file.names_grow:
            return 0.0
        gap_us = file.written_us - parent.written_us - (parent.stored_us - parent.held_us)
        return min(LONGEST_HOLD_S, max(LEAST_HOLD_S, HOLD_TIMES * gap_us / 1e6))

    def _contained(self, stem: str) -> list[TracedFile]:
        """Return the files whose stems are a part of this one, the longest first.

        A part is a beginning, an ending, or what is between separators. Only lengths that occur are
        looked up: numbered files all have the same.
        """
        size, lengths = len(stem), self._lengths
        if len(lengths) == 1 and size in lengths:
            return []
        parts = {part for n in range(1, size) if n in lengths for part in (stem[:n], stem[size - n :])}
        bounds = [i for i, c in enumerate(stem) if c in SEPARATORS][:MOST_SEPARATORS]
        for n, i in enumerate(bounds):
            parts |= {stem[i + 1 : j] for j in bounds[n + 1 :] if j - i - 1 in lengths}
        return [self._by_stem[part] for part in sorted(parts, key=len, reverse=True) if part in self._by_stem]

    def _may_follow(self, earlier: TracedFile, file: TracedFile, key: str) -> bool:
        """Return True unless it is known that `earlier` did not cause the file.

        `key`: the path or trigger by which both belong together.
        """
        self._trust_if_held(earlier, file, key)
        if self._trusted.get(key, 0.0) > time.monotonic():
            return False
        return file.written_us - earlier.stored_us <= LONGEST_GAP_US

    def _trust_if_held(self, earlier: TracedFile | None, file: TracedFile, key: str) -> None:
        """Trust a writer whose file came while `earlier`, its supposed cause, was held."""
        if (
            earlier is not None
            and earlier.depth >= HOLD_FROM
            and key in (earlier.path, earlier.trigger)
            and earlier.held_us + TICK_US < file.written_us < earlier.stored_us - TICK_US
        ):
            self._trusted[key] = time.monotonic() + TRUST_S


def _is_of_file(event: Event) -> bool:
    """Return True if a file trigger made the event.

    Senders of webhooks choose type and data, but not the extensions that begin with oncue.
    """
    return event.type == FILE_EVENT and "oncuetimems" in event.extensions


def _file(event: Event) -> TracedFile:
    data = event.data
    written_us = int(str(event.extensions["oncuetimems"])) * 1_000
    return TracedFile((event.source, event.id), str(data["trigger"]), data["path"], data["stem"], written_us, now_us())


def _deeper(event: Event, file: TracedFile) -> Event:
    if not file.depth:
        return event
    return msgspec.structs.replace(event, extensions={**event.extensions, "oncuedepth": str(file.depth)})


def _each(candidates: Candidates) -> Iterator[TracedFile]:
    yield from candidates.contained
    yield from candidates.latest
    if candidates.same is not None:
        yield candidates.same


def _run(earlier: TracedFile, file: TracedFile, runs: Mapping[Key, Sequence[TaskRun]], slack_us: int) -> TaskRun | None:
    """Return the run of a task of the earlier file in which this one was changed last.

    Without slack a file that somebody writes as soon as the task has ended does not count.
    """
    at_us = file.written_us
    if not earlier.stored_us or earlier.stored_us > at_us + TICK_US:
        return None
    for run in runs.get(earlier.key, ()):
        began = run.started_us - max(slack_us, TICK_US) <= at_us
        if began and (not run.ended_us or at_us <= run.ended_us + slack_us):
            return run
    return None


def _alone(running: list[tuple[TaskRun, TracedFile]]) -> TracedFile | None:
    """Return the file whose task ran last, if no two ran at the same time."""
    running.sort(key=lambda found: found[0].started_us)
    for (run, _), (later, _) in pairwise(running):
        if not run.ended_us or run.ended_us > later.started_us + TICK_US:
            return None
    return running[-1][1] if running else None
