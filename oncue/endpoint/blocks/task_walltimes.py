"""Time that tasks need on a block: as declared, else as measured.

A task that was handed back HAND_BACKS times at the end of a walltime is not handed back again: it
ends with its block, and counts as an attempt. Else a task that is longer than any block would
begin again for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from oncue.endpoint.blocks.durations import Durations
from oncue.endpoint.blocks.scaling import end_margin_s
from oncue.protocol.run_options import Resources, RunOptions, merged
from oncue.quantities import duration_text

LONG_US = 5_000_000  # shorter tasks go to any block that takes tasks
HAND_BACKS = 2
REMEMBERED = 100_000  # tasks


class TaskWalltimes:
    """Needs of tasks, by function and options.

    `options_of` returns what a function states for all of its tasks.
    """

    def __init__(self, walltime_s: float, durations: Durations, options_of: Callable[[str], RunOptions | None]) -> None:
        self._usable_us = int((walltime_s - end_margin_s(walltime_s)) * 1e6)
        self._walltime_s, self._durations, self._options_of = walltime_s, durations, options_of
        self._needs: dict[tuple[str, Resources | None], int] = {}  # since the last `renew`
        self._handed_back: Counter[bytes] = Counter()

    def renew(self) -> None:
        """Forget needs, which new measurements may have changed."""
        self._needs.clear()

    def need_us(self, function: str, options: RunOptions | None) -> int:
        """Return how long a task needs at most; 0 if any block will do."""
        key = (function, None if options is None else options.resources)
        need = self._needs.get(key)
        if need is None:
            need = self._declared_us(function, options) or self._measured_us(function)
            self._needs[key] = need
        return need

    def misfit(self, resources: Resources) -> str:
        """Return why no block can ever run such a task; "" if one can."""
        if resources.walltime_ms * 1_000 <= self._usable_us:
            return ""
        return (
            f"the task asks for a walltime of {duration_text(resources.walltime_ms)}, and a block of this endpoint "
            f"lives for {duration_text(int(self._walltime_s * 1_000))}: raise blocks.walltime in endpoint.yaml"
        )

    def _declared_us(self, function: str, options: RunOptions | None) -> int:
        return merged(options, self._options_of(function)).resources.walltime_ms * 1_000

    def _measured_us(self, function: str) -> int:
        measured = self._durations.percentile_us(function)
        return 0 if measured < LONG_US else min(measured, self._usable_us * 9 // 10)

    def hand_back(self, ids: Iterable[bytes]) -> frozenset[bytes]:
        """Count these tasks as handed back; return those that are not to be."""
        if len(self._handed_back) > REMEMBERED:
            self._handed_back.clear()
        ids = list(ids)
        spared = frozenset(i for i in ids if self._handed_back[i] >= HAND_BACKS)
        self._handed_back.update(i for i in ids if i not in spared)
        return spared
